-- The reconciler.
SELECT 1;
