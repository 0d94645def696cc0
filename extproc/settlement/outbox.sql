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
-- What was lent while Redis was away, and has not ended: the newest checkpoint of each. The commit of its ending takes it away; whoever takes
-- the file over from a dead owner makes an ending of it.
CREATE TABLE loans (
    hold_id TEXT PRIMARY KEY,
    shard INTEGER NOT NULL,
    payer_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    cap_nanos INTEGER NOT NULL,
    charge_nanos INTEGER NOT NULL,
    row BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE outbox (id TEXT NOT NULL, created_ms INTEGER NOT NULL);
