-- What happened, beside what is: the columns that tell it, and tables for what no column can.

-- When what it adds to the stock that is available turned: a take that came to nothing (its units are there again), or a
-- return that began to count. Until then, and for a take that stays, created_at says it all.
ALTER TABLE stock_updates ADD COLUMN turned_at timestamptz;
UPDATE stock_updates SET turned_at = CASE
    WHEN delta < 0 AND state IN ('rejected', 'void') THEN closed_at
    WHEN delta > 0 AND state IN ('acknowledged', 'applied') THEN coalesce(acknowledged_at, closed_at)
END;
ALTER TABLE stock_updates
    ADD CHECK (delta > 0 OR (turned_at IS NOT NULL) = (state IN ('rejected', 'void'))),
    -- Without a ledger a return counts only once it is closed.
    ADD CHECK (delta < 0 OR (state = 'applied') <= (turned_at IS NOT NULL)),
    ADD CHECK (delta < 0 OR (turned_at IS NOT NULL) <= (state IN ('acknowledged', 'applied')));
-- The movements of a product, newest first.
CREATE INDEX stock_updates_product ON stock_updates (product_id, created_at);
CREATE INDEX stock_updates_turned ON stock_updates (product_id, turned_at) WHERE turned_at IS NOT NULL;

-- What a sync found changed beside our own updates: the vendor's own sales and restocks.
CREATE TABLE vendor_changes (
    product_id text COLLATE "C" NOT NULL,
    at timestamptz NOT NULL,
    vendor_id text COLLATE "C" NOT NULL,
    run bigint NOT NULL CHECK (run > 0),
    delta bigint NOT NULL CHECK (delta <> 0),
    PRIMARY KEY (product_id, at, vendor_id, run),
    FOREIGN KEY (product_id, vendor_id) REFERENCES stock
);

-- What was there when the product was first listed: what is available is this, the vendor's own changes and ours.
ALTER TABLE stock
    ADD COLUMN first_on_hand bigint NOT NULL DEFAULT 0,
    ADD COLUMN first_listed_at timestamptz NOT NULL DEFAULT now();
UPDATE stock s SET first_on_hand = on_hand + open_delta - (
    SELECT coalesce(sum(u.delta), 0) FROM stock_updates u
    WHERE u.product_id = s.product_id AND u.vendor_id = s.vendor_id AND (u.delta < 0) = (u.turned_at IS NULL)
);
ALTER TABLE stock ALTER COLUMN first_on_hand DROP DEFAULT, ALTER COLUMN first_listed_at DROP DEFAULT;

-- What happens to few orders, and may happen to one more than once.
CREATE TABLE order_events (
    order_id uuid NOT NULL REFERENCES orders,
    at timestamptz NOT NULL,
    event text NOT NULL CHECK (event IN ('failed', 'replayed', 'push_failed', 'push_replayed', 'push_dropped')),
    -- Whose dead letter it was, where it was one to a vendor.
    vendor_id text COLLATE "C" CHECK ((vendor_id IS NOT NULL) = (event LIKE 'push_%'))
);
CREATE INDEX order_events_order ON order_events (order_id, at);
