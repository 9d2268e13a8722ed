CREATE OR REPLACE FUNCTION note_new_updates() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    missing text;
BEGIN
    SELECT format('update %s names order %s, which does not exist', n.id, n.order_id) INTO missing
    FROM new_updates n WHERE NOT EXISTS (SELECT FROM orders o WHERE o.id = n.order_id) LIMIT 1;
    IF NOT FOUND THEN
        SELECT format('update %s names product %s at vendor %s, which is not in stock',
            (SELECT min(u.id::text) FROM new_updates u WHERE u.product_id = n.product_id AND u.vendor_id = n.vendor_id),
            n.product_id, n.vendor_id)
        INTO missing
        FROM (SELECT DISTINCT product_id, vendor_id FROM new_updates) n
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
    SELECT vendor_id, ids[part:part + 99]
    FROM (SELECT vendor_id, array_agg(id) AS ids FROM new_updates WHERE closed_at IS NULL GROUP BY vendor_id) AS unclosed,
        generate_series(1, cardinality(ids), 100) AS part;
    RETURN NULL;
END
$$;
