-- orders_by_time has taken its place.
DROP INDEX orders_newest;
