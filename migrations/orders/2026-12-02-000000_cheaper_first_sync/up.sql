-- In the order in which a sync locks, and at once as strongly as anything below needs.
LOCK TABLE vendors, stock IN ACCESS EXCLUSIVE MODE;

-- The vendor of a product exists. A foreign key looked it up for each product of a vendor's first sync, which took half of
-- the time of their insert; this asks once for each statement. A foreign key also locks what it finds: a run of a sync,
-- which inserts them, holds its vendor locked.
CREATE FUNCTION check_new_stock() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    missing text;
BEGIN
    SELECT format('product %s is at vendor %s, which does not exist', min(n.product_id), n.vendor_id) INTO missing
    FROM new_stock n GROUP BY n.vendor_id
    HAVING NOT EXISTS (SELECT FROM vendors v WHERE v.id = n.vendor_id) LIMIT 1;
    IF FOUND THEN
        RAISE foreign_key_violation USING MESSAGE = missing;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER check_new AFTER INSERT ON stock REFERENCING NEW TABLE AS new_stock
    FOR EACH STATEMENT EXECUTE FUNCTION check_new_stock();

-- And a vendor with products stays.
CREATE FUNCTION check_gone_vendors() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM gone WHERE EXISTS (SELECT FROM stock s WHERE s.vendor_id = gone.id)) THEN
        RAISE foreign_key_violation USING MESSAGE = 'a vendor that has products stays';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER named_stay AFTER DELETE ON vendors REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION check_gone_vendors();
CREATE TRIGGER name_stays BEFORE UPDATE OF id ON vendors EXECUTE FUNCTION refuse_another_name();

ALTER TABLE stock DROP CONSTRAINT stock_vendor_id_fkey;
