-- name: insert_audit
-- Who did what to whom, and why.
INSERT INTO audit (id, actor, action, subject, reason, detail)
VALUES (%(id)s::uuid, %(actor)s, %(action)s, %(subject)s, %(reason)s, %(detail)s::jsonb)
ON CONFLICT (id) DO NOTHING;

-- name: newest_audit
-- What was done (to one subject, or to any), newest first.
SELECT * FROM audit WHERE %(subject)s::text IS NULL OR subject = %(subject)s::text ORDER BY created_at DESC, id DESC LIMIT %(limit)s;
