-- No plan depends on what stands in a list or a document, and to count their elements was most of what ANALYZE had to do:
-- while orders come in, autovacuum has it done anew each minute, and the events alone took up to 3 s of a processor then.
ALTER TABLE orders ALTER COLUMN lines SET STATISTICS 0, ALTER COLUMN reason SET STATISTICS 0;
ALTER TABLE listed_updates ALTER COLUMN update_ids SET STATISTICS 0;
ALTER TABLE outbox ALTER COLUMN order_ids SET STATISTICS 0;
ALTER TABLE sent_orders ALTER COLUMN order_ids SET STATISTICS 0;
ALTER TABLE events ALTER COLUMN order_ids SET STATISTICS 0, ALTER COLUMN product_ids SET STATISTICS 0,
    ALTER COLUMN reason SET STATISTICS 0;
ALTER TABLE dropped_letters ALTER COLUMN headers SET STATISTICS 0;
ALTER TABLE api_keys ALTER COLUMN scopes SET STATISTICS 0;
ALTER TABLE webhooks ALTER COLUMN types SET STATISTICS 0;
