DROP TABLE acceptors;
