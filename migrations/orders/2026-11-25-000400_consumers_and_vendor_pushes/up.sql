-- How each vendor's API takes what it is told, as the process that told it last has seen it. A table of its own: a sync
-- holds the vendor's row while it writes, and must not keep a message waiting.
CREATE TABLE vendor_pushes (
    vendor_id text COLLATE "C" PRIMARY KEY,
    -- 'open': it failed several times in a row, and is left alone for a while; 'probing': one call tells whether it is
    -- back.
    state text NOT NULL CHECK (state IN ('ok', 'open', 'probing')),
    -- When it began to answer, or ceased to.
    since timestamptz NOT NULL DEFAULT now(),
    error text,
    -- When that was last written: only on a change, so a vendor that is down and has no messages is not seen for long.
    seen_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10);

-- The consumers that are there, each seen every few seconds while its process is well.
CREATE TABLE consumers (
    instance uuid NOT NULL,
    queue text NOT NULL CHECK (queue IN ('orders_queue', 'vendor_sync')),
    seen_at timestamptz NOT NULL DEFAULT now(),
    -- Since when messages have waited and none was finished, where that is so.
    stalled_since timestamptz,
    PRIMARY KEY (instance, queue)
) WITH (fillfactor = 10);
