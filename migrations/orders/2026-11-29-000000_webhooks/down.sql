ALTER TABLE consumers DROP CONSTRAINT consumers_queue_check,
    ADD CONSTRAINT consumers_queue_check CHECK (queue IN ('orders_queue', 'vendor_sync')) NOT VALID;
ALTER TABLE dropped_letters DROP CONSTRAINT dropped_letters_queue_check,
    ADD CONSTRAINT dropped_letters_queue_check CHECK (queue IN ('orders_dlq', 'vendor_sync_dlq')) NOT VALID;
DROP TABLE webhooks;
