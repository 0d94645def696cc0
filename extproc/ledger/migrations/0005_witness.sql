-- The second witness.
SELECT 1;
