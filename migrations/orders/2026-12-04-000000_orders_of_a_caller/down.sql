DROP INDEX orders_of_caller;
