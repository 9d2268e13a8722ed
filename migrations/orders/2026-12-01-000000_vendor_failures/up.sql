-- Since when a vendor's calls fail: from the first one on, when it is still called as before. 'since' goes on saying when it
-- began to be left alone, which is what lost messages are judged by.
ALTER TABLE vendor_pushes ADD COLUMN failing_since timestamptz;
