-- What waits without its message is sent again after five minutes.
DELETE FROM outbox WHERE body IS NULL;
ALTER TABLE outbox DROP COLUMN order_ids, ALTER COLUMN body SET NOT NULL;
DROP TABLE sent_orders;
CREATE INDEX orders_pending ON orders (accepted_at) WHERE status = 'pending';
CREATE INDEX orders_products ON orders USING gin (lines jsonb_path_ops);
