//! What is read by several statements, and has to be of one moment.

use diesel_async::AsyncPgConnection;
use diesel_async::pg::TransactionBuilder;

/// A transaction whose statements all see what was committed before the first of them, and nothing that comes between.
/// For a few statements; [`open_long_read`](super::open_long_read) is for many.
pub fn snapshot(connection: &mut AsyncPgConnection) -> TransactionBuilder<'_, AsyncPgConnection> {
    connection.build_transaction().read_only().repeatable_read()
}
