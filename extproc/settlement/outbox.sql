-- One outbox: the endings of one gate worker, in the order of their commits. No id is ever used twice, and no row is ever changed.
CREATE TABLE endings (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    shard INTEGER NOT NULL,
    hold_id TEXT NOT NULL,
    payer_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    charge_nanos INTEGER NOT NULL,
    reserved_nanos INTEGER NOT NULL,
    row BLOB NOT NULL
);
CREATE TABLE outbox (id TEXT NOT NULL, created_ms INTEGER NOT NULL);
