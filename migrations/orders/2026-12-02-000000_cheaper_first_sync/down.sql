ALTER TABLE stock ADD FOREIGN KEY (vendor_id) REFERENCES vendors;
DROP TRIGGER name_stays ON vendors;
DROP TRIGGER named_stay ON vendors;
DROP TRIGGER check_new ON stock;
DROP FUNCTION check_gone_vendors;
DROP FUNCTION check_new_stock;
