-- Whose line it is: the settler of that host sees the outboxes that may know better, the others do not.
ALTER TABLE witness_endings ADD COLUMN log text NOT NULL DEFAULT '' CHECK (length(log) <= 4500);
COMMENT ON COLUMN witness_endings.log IS 'host:path, as in witness_logs.';
