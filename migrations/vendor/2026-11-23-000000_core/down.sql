DROP TABLE stock_ledger, products;
