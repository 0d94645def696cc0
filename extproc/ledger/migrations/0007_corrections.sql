-- Corrections and periods.
SELECT 1;
