DROP TABLE suspects, outbox, stock_updates, orders, stock, vendors, installation;
