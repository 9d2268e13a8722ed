-- Orders come in the order of their times, and their newest are asked for: an index that grows at its end keeps its last
-- page at hand and its pages full, and is read backwards as well. One that grows at its beginning splits page after page in
-- two.
CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_by_time ON orders (accepted_at, id)
