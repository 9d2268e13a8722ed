DROP TABLE dropped_letters;
