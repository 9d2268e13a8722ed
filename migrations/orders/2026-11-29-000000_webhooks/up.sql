-- Who is told of events by HTTP, and up to where each was: what comes after that place is not in the broker yet.
-- Hundreds of rows at most, of which the places change several times a second: fillfactor leaves room for HOT updates.
CREATE TABLE webhooks (
    id uuid PRIMARY KEY,
    -- Whose it is; nobody's where it is the configuration's, which knows it by its name.
    caller text COLLATE "C" CHECK (octet_length(caller) BETWEEN 1 AND 255),
    name text COLLATE "C" UNIQUE CHECK (octet_length(name) BETWEEN 1 AND 64),
    url text NOT NULL CHECK (octet_length(url) BETWEEN 1 AND 2048),
    types text[] NOT NULL CHECK (
        cardinality(types) > 0
        AND types <@ ARRAY['order.confirmed', 'order.rejected', 'order.failed', 'order.cancelled', 'stock.changed']
    ),
    -- Whose orders it hears of; everybody's where there is none.
    orders_of text COLLATE "C",
    -- As it is: a signature is made with it, so no hash would do.
    secret bytea NOT NULL CHECK (octet_length(secret) BETWEEN 24 AND 64),
    created_at timestamptz NOT NULL,
    disabled_at timestamptz,
    -- Since when its receiver has been left alone, and what it failed with last.
    failing_since timestamptz,
    last_error text,
    -- Until then nothing more is put into the broker for it: enough waits there.
    held_until timestamptz,
    fed_at timestamptz,
    -- The place, as in events.
    told_xid xid8 NOT NULL DEFAULT pg_snapshot_xmin(pg_current_snapshot()),
    told_row bigint NOT NULL DEFAULT 0,
    told_index integer NOT NULL DEFAULT 0,
    CHECK (num_nonnulls(caller, name) = 1)
) WITH (fillfactor = 20);

ALTER TABLE consumers DROP CONSTRAINT consumers_queue_check,
    ADD CONSTRAINT consumers_queue_check CHECK (queue IN ('orders_queue', 'vendor_sync', 'webhooks')) NOT VALID;
ALTER TABLE dropped_letters DROP CONSTRAINT dropped_letters_queue_check,
    ADD CONSTRAINT dropped_letters_queue_check
        CHECK (queue IN ('orders_dlq', 'vendor_sync_dlq', 'webhooks_dlq')) NOT VALID;
