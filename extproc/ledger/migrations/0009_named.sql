-- What was taken of an account by other than its requests: little, and looked for under the lock of the account.

CREATE INDEX billing_events_named ON billing_events (user_id, created_at) WHERE amount < 0 AND event_type NOT IN ('settle', 'expire', 'adjust');
