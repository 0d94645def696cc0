-- What every key spends, by the day, and what was put into an account: for those who ask about their money.
-- Keys with a budget were counted already. Until the last old settler has gone, keys without one are counted by the new ones alone.
INSERT INTO budget_spend (budget_id, day, nanos)
SELECT coalesce(c.budget_id, c.id), (q.created_at AT TIME ZONE 'UTC')::date, sum(q.cost)
FROM requests AS q JOIN credentials AS c ON c.id = q.creds_id
WHERE c.budget_nanos IS NULL AND q.cost > 0
GROUP BY 1, 2
ON CONFLICT (budget_id, day) DO UPDATE SET nanos = budget_spend.nanos + excluded.nanos;
COMMENT ON TABLE budget_spend IS 'What keys have spent, by the day (UTC) of the hold; rotated keys together, under the first of their line.';

-- Of these an account has few; its endings, of which it has millions, are not in it.
CREATE INDEX billing_events_credits ON billing_events (user_id)
    WHERE event_type NOT IN ('settle', 'void', 'expire', 'adjust', 'overage', 'usage_refund', 'quota_grant');
