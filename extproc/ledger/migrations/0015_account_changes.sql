-- Another tier or price of an account, from a moment on that is told beforehand.
ALTER TABLE users ADD COLUMN changes jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(changes) = 'array');
COMMENT ON COLUMN users.changes IS 'By their moments: [{"at_ms": unix ms, "tier": text} or {"at_ms": unix ms, "price_factor": millionths}, …]. From its moment on a change counts more than tier and price_factor; the next change that an operator makes takes those that are over into them.';
