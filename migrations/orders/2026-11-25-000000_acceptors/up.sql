-- The processes that accept orders. Each vouches, for a second at a time, that all it has accepted is in this database:
-- an id that is not here is unknown only while every process vouches for itself. One that accepts through the broker
-- cannot say so here, but its word runs out before it does.
CREATE TABLE acceptors (
    instance uuid PRIMARY KEY,
    -- NULL while it knows of orders that only the broker has.
    vouches_until timestamptz,
    seen_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10);
