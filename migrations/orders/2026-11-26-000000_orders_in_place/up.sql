-- Deciding an order changes its row in place (HOT) as long as no index covers what changes. Each decision wrote all of
-- the table's indexes anew, since one of them was about pending orders; and the GIN index on what is ordered cost ten
-- times the row. Lists with such a filter read the newest orders instead, so many for a page.
DROP INDEX orders_pending;
DROP INDEX orders_products;

-- What the queue has been given, to be looked at again later: an order that is still pending then is sent again. One row
-- for each message, and not one for each order.
CREATE TABLE sent_orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sent_at timestamptz NOT NULL,
    order_ids uuid[] NOT NULL CHECK (cardinality(order_ids) > 0)
);
CREATE INDEX sent_orders_oldest ON sent_orders (sent_at);

-- The orders of a message to orders_queue, which move to sent_orders with its confirm. The message itself is made of
-- their rows.
ALTER TABLE outbox ADD COLUMN order_ids uuid[], ALTER COLUMN body DROP NOT NULL;
UPDATE outbox SET order_ids = ARRAY[message_id] WHERE queue = 'orders_queue';
ALTER TABLE outbox ADD CHECK (body IS NOT NULL OR order_ids IS NOT NULL);

INSERT INTO sent_orders (sent_at, order_ids)
SELECT now(), array_agg(id) FROM (
    SELECT id, row_number() OVER (ORDER BY accepted_at) / 100 AS message FROM orders
    WHERE status = 'pending' AND NOT EXISTS (SELECT FROM outbox WHERE message_id = orders.id)
) AS pending GROUP BY message;
