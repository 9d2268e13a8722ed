ALTER TABLE vendor_pushes DROP COLUMN failing_since;
