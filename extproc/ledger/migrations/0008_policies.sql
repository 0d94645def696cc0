-- Policies.
SELECT 1;
