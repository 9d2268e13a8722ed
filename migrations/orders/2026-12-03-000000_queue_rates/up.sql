-- How fast messages go through the queues, as each process that consumes has seen it last: of a work queue those that it
-- has finished, of a retry queue and of dead letters those that it has sent there. The broker does not tell.
CREATE TABLE queue_rates (
    instance uuid NOT NULL,
    queue text NOT NULL,
    per_second double precision NOT NULL CHECK (per_second >= 0),
    seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (instance, queue)
) WITH (fillfactor = 10);
