DROP TABLE queue_rates;
