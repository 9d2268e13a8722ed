DROP TABLE consumers;
DROP TABLE vendor_pushes;
