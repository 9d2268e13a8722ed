ALTER TABLE stock_updates
    ADD FOREIGN KEY (order_id) REFERENCES orders,
    ADD FOREIGN KEY (product_id, vendor_id) REFERENCES stock,
    ADD FOREIGN KEY (reverses) REFERENCES stock_updates;
DROP TRIGGER name_stays ON stock_updates;
DROP TRIGGER name_stays ON stock;
DROP TRIGGER name_stays ON orders;
DROP TRIGGER named_stay ON stock_updates;
DROP TRIGGER named_stay ON stock;
DROP TRIGGER named_stay ON orders;
DROP TRIGGER note_new ON stock_updates;
DROP FUNCTION refuse_another_name;
DROP FUNCTION check_gone;
DROP FUNCTION note_new_updates;
ALTER TABLE stock_updates SET (fillfactor = 70);
ALTER TABLE orders SET (fillfactor = 70);
DROP VIEW unclosed_updates;
DROP TABLE listed_updates;
CREATE INDEX stock_updates_unclosed ON stock_updates (vendor_id, id) WHERE closed_at IS NULL;
