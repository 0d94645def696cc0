"""The append-only double-entry ledger in PostgreSQL. ``port`` and ``entries`` are pure; ``postgres`` carries them out."""
