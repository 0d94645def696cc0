"""The append-only double-entry ledger in PostgreSQL. Pure: ``port``, ``entries``, ``facts``, ``rows``, and ``plan``, which decides: read it first.

``postgres`` posts what the plan says, by the ``journal``; every other module answers one port.
"""
