"""The append-only double-entry ledger in PostgreSQL. Pure: ``port``, ``entries``, ``facts``, ``rows`` and ``plan``; read ``plan`` first.

It decides what a posting does; ``postgres`` does it, by the ``journal``. Every other module answers one port.
"""
