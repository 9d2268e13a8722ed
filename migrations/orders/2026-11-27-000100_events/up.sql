-- What happened, for those who listen: one row for each transaction and kind, written in the statement that makes the
-- change, so an order pays the 16 bytes of its id. What there is to tell of an order stands in its own row.
--
-- Rows become visible in another order than their ids are drawn. Readers take them in the order of (xid, id), and only
-- those of transactions older than any that is still open: behind what was read, nothing can appear any more.
CREATE TABLE events (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    id bigint GENERATED ALWAYS AS IDENTITY,
    kind text NOT NULL CHECK (
        kind IN ('order.confirmed', 'order.rejected', 'order.failed', 'order.cancelled', 'stock.changed')
    ),
    order_ids uuid[],
    product_ids text[],
    -- Only of what failed: it may be taken up again, and its order forgets the reason then.
    reason jsonb,
    at timestamptz NOT NULL,
    PRIMARY KEY (xid, id),
    CHECK (num_nonnulls(order_ids, product_ids) = 1),
    CHECK ((product_ids IS NOT NULL) = (kind = 'stock.changed')),
    CHECK (coalesce(cardinality(order_ids), cardinality(product_ids)) > 0)
);

-- One row: up to where events were deleted, so that whoever resumes from before that hears that it missed some.
CREATE TABLE events_deleted (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    xid xid8 NOT NULL DEFAULT '0',
    id bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);
INSERT INTO events_deleted DEFAULT VALUES;
