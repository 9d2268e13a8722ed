-- A vendor's own stock, and the ledger of what stockctl changed in it.
CREATE TABLE products (
    id text COLLATE "C" PRIMARY KEY CHECK (octet_length(id) BETWEEN 1 AND 200),
    name text NOT NULL,
    stock bigint NOT NULL CHECK (stock BETWEEN 0 AND 1000000000000000)
) WITH (fillfactor = 70);

-- The outcome of each update, written in the transaction that changes the stock. A repeated id gets it again.
CREATE TABLE stock_ledger (
    id uuid PRIMARY KEY,
    -- The installation of stockctl that sent it; a shared vendor tells them apart by it.
    source text NOT NULL CHECK (octet_length(source) BETWEEN 1 AND 200),
    -- No foreign key: the ledger outlives a product that the vendor no longer lists.
    product_id text COLLATE "C" NOT NULL CHECK (octet_length(product_id) BETWEEN 1 AND 200),
    delta bigint NOT NULL CHECK (delta <> 0),
    reverses uuid,
    outcome text NOT NULL CHECK (outcome IN ('applied', 'rejected', 'void')),
    recorded_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((delta > 0) = (reverses IS NOT NULL)),
    -- Only a take is rejected: what a return gives back was applied before, so there is room for it.
    CHECK (outcome <> 'rejected' OR delta < 0)
);
-- A take is returned at most once.
CREATE UNIQUE INDEX stock_ledger_reverses ON stock_ledger (reverses) WHERE reverses IS NOT NULL;
