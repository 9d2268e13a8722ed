-- Who may call the API. A key's secret is 256 random bits, of which only the hash is here: what is read here opens nothing.
CREATE TABLE api_keys (
    -- The public part of the key.
    id text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[0-9a-f]{12}$'),
    -- Whose it is: orders and idempotency keys belong to the caller, whichever of its keys they came with.
    caller text COLLATE "C" NOT NULL CHECK (octet_length(caller) BETWEEN 1 AND 64),
    secret_sha256 bytea NOT NULL CHECK (octet_length(secret_sha256) = 32),
    scopes text[] NOT NULL CHECK (
        cardinality(scopes) > 0 AND scopes <@ ARRAY['orders:write', 'orders:read', 'stock:write', 'admin']
    ),
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz
);
