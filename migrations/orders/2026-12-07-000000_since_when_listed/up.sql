-- Each process looks every minute for updates that nobody has answered for minutes, and went through all that were not
-- closed for that, nearly all of them made since the last sync: 2.4 s on a busy server, at 8 000 orders a second. Now
-- it sees which rows of the list are that old. What is listed already counts as listed now.
ALTER TABLE listed_updates ADD COLUMN listed_at timestamptz NOT NULL DEFAULT now();
