-- Up to where the ledger has every ending of each outbox. Written in the transaction that read them back, so an older copy of the ledger
-- says an older position, and the outboxes are posted again from there.
CREATE TABLE outbox_positions (
    outbox_id uuid PRIMARY KEY,
    below bigint NOT NULL CHECK (below >= 1),
    moved_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
COMMENT ON COLUMN outbox_positions.below IS 'Every row of the outbox with a lower id was read back from this ledger.';
