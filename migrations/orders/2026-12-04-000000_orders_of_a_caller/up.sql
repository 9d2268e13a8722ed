-- A caller that sees only its own orders reads its newest here, however many others have placed since. Where no keys are
-- required all orders have one caller, who sees all: orders_by_time is its index, and this one costs nothing.
CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_of_caller ON orders (caller, accepted_at, id) WHERE caller <> 'local'
