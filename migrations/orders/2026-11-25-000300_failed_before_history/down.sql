-- What was added is true, and cannot be told from what was there.
SELECT 1;
