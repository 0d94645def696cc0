-- name: credits_of_account
-- What was put into an account, less what was taken out other than by requests; refunds of these lessen what was spent instead.
SELECT b.credited_total AS told_nanos, (
    SELECT coalesce(sum(v.amount), 0)::bigint FROM billing_events AS v
    WHERE v.user_id = b.user_id
        AND v.event_type NOT IN ('settle', 'void', 'expire', 'adjust', 'overage', 'usage_refund', 'quota_grant')
) AS credits_nanos
FROM balances AS b WHERE b.user_id = %(payer)s::uuid;

-- name: spent_by_key
-- What a key and those that it replaced have ever spent.
SELECT coalesce(sum(s.nanos), 0)::bigint AS nanos FROM credentials AS c JOIN budget_spend AS s ON s.budget_id = coalesce(c.budget_id, c.id)
WHERE c.id = %(key)s::uuid;

-- name: spent_by_day
-- The same by days: of one key, or (no key named) of all of an account.
SELECT s.day, sum(s.nanos)::bigint AS nanos
FROM (
    SELECT DISTINCT coalesce(budget_id, id) AS id FROM credentials
    WHERE user_id = %(payer)s::uuid AND (%(key)s::uuid IS NULL OR id = %(key)s::uuid)
) AS c JOIN budget_spend AS s ON s.budget_id = c.id
WHERE s.day >= %(since)s::date AND s.day < %(until)s::date
GROUP BY 1 ORDER BY 1;
