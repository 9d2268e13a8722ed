CREATE INDEX orders_newest ON orders (accepted_at DESC, id DESC);
