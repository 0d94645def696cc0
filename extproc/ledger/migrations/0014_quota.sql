-- Free tokens: what Redis was told of them, as credited_total says it of money; and which event has used how many.

ALTER TABLE balances
    ADD COLUMN credited_input bigint NOT NULL DEFAULT 0,
    ADD COLUMN credited_output bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN balances.free_quota_input IS 'Free tokens that are left = sum of the account''s entries in this unit. Kept by the poster.';
COMMENT ON COLUMN balances.credited_input IS 'Every free token ever sent to Redis, cumulative, as credited_total.';

-- NULL of nearly every event, which costs it nothing.
ALTER TABLE billing_events ADD COLUMN free_input bigint, ADD COLUMN free_output bigint;
ALTER TABLE billing_events ADD CONSTRAINT billing_events_free_check CHECK (free_input > 0 OR free_output > 0 OR (free_input IS NULL AND free_output IS NULL)) NOT VALID;
COMMENT ON COLUMN billing_events.free_input IS 'Free tokens of prompts that it used (an ending, an adjust) or gave (a quota_grant); what was really taken the entries say.';
