-- The aggregated view of stock, the orders, and what leaves for the broker.
-- Text that is compared or locked in order is COLLATE "C": the order of bytes, the same here, in every
-- vendor's database and in the program, whatever the cluster's locale.

-- One row: who we are in a vendor's ledger, and a row to probe that the database takes writes.
CREATE TABLE installation (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    probed_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO installation DEFAULT VALUES;

CREATE TABLE vendors (
    id text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9_-]{1,64}$'),
    -- The sync run that may write this vendor's stock; drawn before its snapshot opens.
    current_run bigint NOT NULL DEFAULT 0 CHECK (current_run >= 0),
    -- The last run that wrote its whole catalogue; 0 when there was none yet.
    completed_run bigint NOT NULL DEFAULT 0 CHECK (completed_run BETWEEN 0 AND current_run),
    last_sync_at timestamptz,
    last_sync_error text,
    -- A rejection proved the stock on hand stale: the sync loop runs at once.
    sync_requested boolean NOT NULL DEFAULT false,
    CHECK ((completed_run = 0) = (last_sync_at IS NULL))
);

-- fillfactor leaves room for HOT updates: no index covers a column that changes.
CREATE TABLE stock (
    product_id text COLLATE "C" NOT NULL CHECK (octet_length(product_id) BETWEEN 1 AND 200),
    vendor_id text COLLATE "C" NOT NULL REFERENCES vendors,
    name text NOT NULL,
    -- What the vendor's database said; a vendor may count below zero, so no check forbids it.
    on_hand bigint NOT NULL CHECK (on_hand BETWEEN -1000000000000000 AND 1000000000000000),
    -- The sum of the updates that count and that on_hand does not include yet. available = on_hand + open_delta.
    open_delta bigint NOT NULL DEFAULT 0,
    -- The vendor's run that was current when it rejected a take: passed over until a later run wrote this row.
    blocked_run bigint CHECK (blocked_run >= 0),
    PRIMARY KEY (product_id, vendor_id)
) WITH (fillfactor = 50);
CREATE INDEX stock_vendor ON stock (vendor_id, product_id);

CREATE TABLE orders (
    id uuid PRIMARY KEY,
    caller text NOT NULL CHECK (octet_length(caller) BETWEEN 1 AND 255),
    idempotency_key text CHECK (octet_length(idempotency_key) BETWEEN 1 AND 1020),
    reference text CHECK (octet_length(reference) <= 1020),
    -- [{"productId": "p1", "quantity": 2}], each product once.
    lines jsonb NOT NULL CHECK (jsonb_typeof(lines) = 'array' AND jsonb_array_length(lines) BETWEEN 1 AND 100),
    status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'confirmed', 'rejected', 'failed', 'cancelled')),
    -- Why it was rejected, failed or cancelled: {"code": …, …}.
    reason jsonb,
    accepted_at timestamptz NOT NULL,
    decided_at timestamptz,
    cancelled_at timestamptz,
    -- How often the slow sweep has sent it again: the wait doubles each time.
    resent smallint NOT NULL DEFAULT 0 CHECK (resent >= 0),
    CHECK ((status IN ('rejected', 'failed')) <= (reason IS NOT NULL)),
    CHECK ((status IN ('confirmed', 'rejected')) <= (decided_at IS NOT NULL)),
    CHECK ((status = 'cancelled') = (cancelled_at IS NOT NULL))
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX orders_idempotency ON orders (caller, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX orders_newest ON orders (accepted_at DESC, id DESC);
CREATE INDEX orders_pending ON orders (accepted_at) WHERE status = 'pending';
CREATE INDEX orders_products ON orders USING gin (lines jsonb_path_ops);

-- One signed change of one product's stock at one vendor: a take, or a return that reverses a take.
CREATE TABLE stock_updates (
    id uuid PRIMARY KEY,
    order_id uuid NOT NULL REFERENCES orders,
    product_id text COLLATE "C" NOT NULL,
    vendor_id text COLLATE "C" NOT NULL,
    delta bigint NOT NULL CHECK (delta <> 0),
    reverses uuid REFERENCES stock_updates,
    state text NOT NULL DEFAULT 'open'
        CHECK (state IN ('open', 'acknowledged', 'applied', 'rejected', 'void')),
    created_at timestamptz NOT NULL,
    acknowledged_at timestamptz,
    closed_at timestamptz,
    -- Set while its message is in the dead-letter queue.
    dead_lettered_at timestamptz,
    resent smallint NOT NULL DEFAULT 0 CHECK (resent >= 0),
    FOREIGN KEY (product_id, vendor_id) REFERENCES stock,
    -- A take has a negative delta; what has a positive one returns a take.
    CHECK ((delta > 0) = (reverses IS NOT NULL)),
    CHECK ((state IN ('applied', 'rejected', 'void')) = (closed_at IS NOT NULL)),
    CHECK (state <> 'acknowledged' OR acknowledged_at IS NOT NULL)
) WITH (fillfactor = 70);
CREATE INDEX stock_updates_order ON stock_updates (order_id);
-- A take is returned at most once.
CREATE UNIQUE INDEX stock_updates_reverses ON stock_updates (reverses) WHERE reverses IS NOT NULL;
-- A sync lists what is not closed of its vendor, in the order of ids.
CREATE INDEX stock_updates_unclosed ON stock_updates (vendor_id, id) WHERE closed_at IS NULL;

-- What was decided but is not known to be in the broker yet. A row goes once its confirm has come.
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue text NOT NULL CHECK (queue IN ('orders_queue', 'vendor_sync')),
    message_id uuid NOT NULL,
    body text NOT NULL CHECK (octet_length(body) BETWEEN 2 AND 4194304),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Attempts at messages that were delivered before without an answer (their consumer may have died of them):
-- each is begun alone and counted here first, so that one that kills its consumer is told from its neighbours.
CREATE TABLE suspects (
    fingerprint uuid PRIMARY KEY,
    begun smallint NOT NULL CHECK (begun > 0),
    begun_at timestamptz NOT NULL DEFAULT now()
);
