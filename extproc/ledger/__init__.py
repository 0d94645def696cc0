"""The append-only double-entry ledger in PostgreSQL. Read ``plan`` first: it decides what a posting does.

===========  ============================================================================================
pure         ``port``, ``entries``, ``facts``, ``plan``, ``fence`` (order of a stream), ``rows``, ``lines`` (as COPY reads them)
posting      ``postgres`` locks, reads and commits, by ``journal``; ``leadership``: who posts which shard; ``outboxes``
by decision  ``grants``, ``periods``, ``audit``
told         ``spending`` to customers; ``fact_reader`` to the reconciler; ``rebuild`` to who rebuilds; ``witness`` to the second witness
===========  ============================================================================================
"""
