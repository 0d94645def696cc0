-- Late charges of an account, and charges that the operator has borne a part of: few, and looked for under the lock of the account.

CREATE INDEX billing_events_past ON billing_events (user_id, created_at)
    WHERE event_type IN ('settle', 'expire', 'adjust') AND (seq IS NULL OR charge_nanos + amount <> 0);
