-- A rotated key goes on with the budget of the one it replaces, not with a full one: the counter is that of the line's first key.
ALTER TABLE credentials ADD COLUMN budget_id uuid;
COMMENT ON COLUMN credentials.budget_id IS 'The key whose budget this one uses up: the first of a line of rotated keys; NULL: its own.';
