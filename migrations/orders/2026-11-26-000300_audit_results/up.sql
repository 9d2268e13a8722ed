-- What the last audit found in each of its checks: an audit ends, and whoever watches over the installation asks
-- processes that go on.
CREATE TABLE audit_results (
    check_name text PRIMARY KEY,
    violations bigint NOT NULL CHECK (violations >= 0),
    -- What could not be looked at, which may hide more.
    failures bigint NOT NULL CHECK (failures >= 0),
    audited_at timestamptz NOT NULL DEFAULT now()
);
