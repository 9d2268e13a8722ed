DROP TABLE order_events, vendor_changes;
ALTER TABLE stock DROP COLUMN first_on_hand, DROP COLUMN first_listed_at;
ALTER TABLE stock_updates DROP COLUMN turned_at;
DROP INDEX IF EXISTS stock_updates_product;
