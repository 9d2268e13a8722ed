-- An order that had failed before its history was kept tells of it too, so that every failed order does. When it failed
-- is not known; it was accepted before that.
INSERT INTO order_events (order_id, at, event)
SELECT o.id, o.accepted_at, 'failed' FROM orders o
WHERE o.status = 'failed' AND NOT EXISTS (
    SELECT FROM order_events e WHERE e.order_id = o.id AND e.event = 'failed'
);
