ALTER TABLE listed_updates DROP COLUMN listed_at;
