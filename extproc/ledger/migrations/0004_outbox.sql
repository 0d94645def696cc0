-- The outbox.
SELECT 1;
