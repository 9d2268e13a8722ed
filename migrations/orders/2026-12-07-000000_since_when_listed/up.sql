-- Each process looks every minute for updates that nobody has answered for minutes, and went through all that were not
-- closed for that, nearly all of them made since the last sync: 2.4 s of a processor after 30 s of orders at full speed. Now
-- it sees which rows of the list are that old. What is listed already counts as listed now.
ALTER TABLE listed_updates ADD COLUMN listed_at timestamptz NOT NULL DEFAULT now();
