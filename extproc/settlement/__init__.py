"""From endings to the ledger, and from the ledger back into Redis. Who does what, in ten minutes: docs/reference/money.md.

=============  ==========================================================================================
to the ledger  ``outbox`` over ``outbox_file`` (in gate workers); ``poster`` and ``replay``, both by ``booking`` in ``lanes``
leases         ``reaper``
the witness    ``witness``: ``witness_log`` reads, ``witness_lines``, ``witnessed`` and ``witness_endings`` decide, ``prices`` remembers
to Redis       ``sweep``, ``rebuild``; ``old_master`` is closed
by decision    ``deposit``, ``release``, ``month_end``
comparing      ``invariants`` (pure); ``reconciler``, ``reconcile_outboxes``, ``reconcile_unbilled`` say when
for all loops  ``pace``, ``meter``
=============  ==========================================================================================
"""
