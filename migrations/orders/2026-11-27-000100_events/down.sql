DROP TABLE events_deleted, events;
