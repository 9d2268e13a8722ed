DROP FUNCTION close_takes(uuid[], timestamptz);
DROP FUNCTION acknowledge_takes(uuid[], timestamptz);
