-- What is inserted meanwhile waits for the trigger that lists it. In the order in which the flows lock, and at once as
-- strongly as anything below needs: nobody waits for us who holds what we wait for.
LOCK TABLE orders, stock, stock_updates IN ACCESS EXCLUSIVE MODE;

-- All rows of a page change in one transaction: a batch decides the orders of one batch, a call of a vendor answers for the
-- updates of one batch. A row is changed in place (HOT) only where its page has room for the new version, and what was
-- there before goes only when its transaction is over; so a page has room for all of its rows once more. With 30 % of it
-- three updates of four wrote all their indexes anew.
ALTER TABLE orders SET (fillfactor = 45);
ALTER TABLE stock_updates SET (fillfactor = 45);

-- What a sync has to look at: each update that is not closed stands in one of these rows, and some that are closed do
-- until the next sync. An index on what is not closed would let no update be closed in place. One row for up to 100
-- updates of a statement: more would be moved out of the row.
CREATE TABLE listed_updates (
    vendor_id text COLLATE "C" NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    update_ids uuid[] NOT NULL CHECK (cardinality(update_ids) BETWEEN 1 AND 100),
    PRIMARY KEY (vendor_id, id)
);
INSERT INTO listed_updates (vendor_id, update_ids)
SELECT vendor_id, array_agg(id)
FROM (SELECT id, vendor_id, (row_number() OVER (PARTITION BY vendor_id ORDER BY id) - 1) / 100 AS part
      FROM stock_updates WHERE closed_at IS NULL) AS unclosed
GROUP BY vendor_id, part;
DROP INDEX stock_updates_unclosed;
CREATE VIEW unclosed_updates AS
SELECT u.*, l.id AS listing FROM listed_updates l CROSS JOIN LATERAL unnest(l.update_ids) AS listed (id)
JOIN stock_updates u ON u.id = listed.id AND u.vendor_id = l.vendor_id
WHERE u.closed_at IS NULL;

-- What an update names exists. A foreign key is checked row by row, which took half of the time of an insert of 500; these
-- triggers ask once for each statement. A foreign key also locks what it finds: whoever inserts updates holds their orders
-- and their stock locked. The same function lists what is new. A plan is kept for the whole session, so it must not be one
-- for tables that are still small.
CREATE FUNCTION note_new_updates() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    missing text;
BEGIN
    SELECT format('update %s names order %s, which does not exist', n.id, n.order_id) INTO missing
    FROM new_updates n WHERE NOT EXISTS (SELECT FROM orders o WHERE o.id = n.order_id) LIMIT 1;
    IF NOT FOUND THEN
        SELECT format('update %s names product %s at vendor %s, which is not in stock', n.id, n.product_id, n.vendor_id)
        INTO missing
        FROM (SELECT min(id::text) AS id, product_id, vendor_id FROM new_updates GROUP BY product_id, vendor_id) n
        WHERE NOT EXISTS (SELECT FROM stock s WHERE s.product_id = n.product_id AND s.vendor_id = n.vendor_id) LIMIT 1;
    END IF;
    IF NOT FOUND THEN
        SELECT format('update %s reverses update %s, which does not exist', n.id, n.reverses) INTO missing
        FROM new_updates n
        WHERE n.reverses IS NOT NULL AND NOT EXISTS (SELECT FROM stock_updates t WHERE t.id = n.reverses) LIMIT 1;
    END IF;
    IF FOUND THEN
        RAISE foreign_key_violation USING MESSAGE = missing;
    END IF;
    INSERT INTO listed_updates (vendor_id, update_ids)
    SELECT vendor_id, array_agg(id)
    FROM (SELECT id, vendor_id, (row_number() OVER (PARTITION BY vendor_id) - 1) / 100 AS part
          FROM new_updates WHERE closed_at IS NULL) AS unclosed
    GROUP BY vendor_id, part;
    RETURN NULL;
END
$$;
CREATE TRIGGER note_new AFTER INSERT ON stock_updates REFERENCING NEW TABLE AS new_updates
    FOR EACH STATEMENT EXECUTE FUNCTION note_new_updates();

-- And what is named stays. The argument says by what an update names a row that is gone.
CREATE FUNCTION check_gone() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    is_named boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM gone JOIN stock_updates u ON %s)', TG_ARGV[0]) INTO is_named;
    IF is_named THEN
        RAISE foreign_key_violation USING MESSAGE = format('a row of %s that an update names stays', TG_TABLE_NAME);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER named_stay AFTER DELETE ON orders REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION check_gone('u.order_id = gone.id');
CREATE TRIGGER named_stay AFTER DELETE ON stock REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION check_gone('u.product_id = gone.product_id AND u.vendor_id = gone.vendor_id');
CREATE TRIGGER named_stay AFTER DELETE ON stock_updates REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION check_gone('u.reverses = gone.id');
CREATE FUNCTION refuse_another_name() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE foreign_key_violation USING MESSAGE = format('a row of %s keeps its name', TG_TABLE_NAME);
END
$$;
CREATE TRIGGER name_stays BEFORE UPDATE OF id ON orders EXECUTE FUNCTION refuse_another_name();
CREATE TRIGGER name_stays BEFORE UPDATE OF product_id, vendor_id ON stock EXECUTE FUNCTION refuse_another_name();
CREATE TRIGGER name_stays BEFORE UPDATE OF id, order_id, product_id, vendor_id, reverses ON stock_updates
    EXECUTE FUNCTION refuse_another_name();

ALTER TABLE stock_updates
    DROP CONSTRAINT stock_updates_order_id_fkey,
    DROP CONSTRAINT stock_updates_product_id_vendor_id_fkey,
    DROP CONSTRAINT stock_updates_reverses_fkey;
