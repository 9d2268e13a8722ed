-- Most updates are takes that come to what was expected of them: each is acknowledged once, and closed once. To lock such
-- rows in the order of their ids before they are changed, as everybody does, found each one twice and wrote each one twice.
-- An index gives them in its order, so they are changed in one pass over it; no other plan would do, hence the settings.
CREATE FUNCTION acknowledge_takes(ids uuid[], at timestamptz) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    UPDATE stock_updates u SET state = 'acknowledged', acknowledged_at = at, dead_lettered_at = NULL
    WHERE u.id = ANY (ids) AND u.state = 'open' AND u.delta < 0;
END
$$;

-- What the vendor's ledger has as applied. Returns how much of each product they take together, and how many they are.
CREATE FUNCTION close_takes(ids uuid[], at timestamptz)
RETURNS TABLE (product_id text, delta bigint, updates bigint) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN QUERY WITH closed AS (
        UPDATE stock_updates u SET state = 'applied', closed_at = at, dead_lettered_at = NULL
        WHERE u.id = ANY (ids) AND u.state IN ('open', 'acknowledged') AND u.delta < 0
        RETURNING u.product_id, u.delta
    )
    SELECT c.product_id, sum(c.delta)::bigint, count(*) FROM closed c GROUP BY c.product_id;
END
$$;
