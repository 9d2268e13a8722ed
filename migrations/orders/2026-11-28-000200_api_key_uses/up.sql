-- When a key was used last, to within some minutes: who wants to take back an old one sees whether somebody still comes with
-- it. Null for one that was never used, or not since this column is there.
ALTER TABLE api_keys ADD COLUMN last_used_at timestamptz;
