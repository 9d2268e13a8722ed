//! A new version comes: processes are replaced, and the schema changes, while the old version runs.

mod load;
mod migrations;
mod restarts;
