//! What goes wrong with a PostgreSQL server, in two classes: it cannot be reached, or it refused a statement.

use diesel::result::{DatabaseErrorKind, Error as DieselError};

/// An error of a PostgreSQL edge.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers, or the connection was lost: no message's fault. A statement that was under way may or may not
    /// have been committed.
    #[error("PostgreSQL at {at} cannot be reached: {problem}")]
    Unavailable {
        /// Host, port and database; never the password.
        at: String,
        /// What happened.
        problem: String,
    },
    /// The server answered with an error.
    #[error("PostgreSQL refused a statement: {}", describe(.0))]
    Refused(#[source] DieselError),
}

impl Error {
    /// Whether the server could not be reached.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether a row stood in the way of a unique constraint.
    #[must_use]
    pub fn is_unique_violation(&self) -> bool {
        matches!(
            self,
            Self::Refused(DieselError::DatabaseError(
                DatabaseErrorKind::UniqueViolation,
                _
            ))
        )
    }

    /// What undoes a transaction without an error: its own code wants none of it.
    #[must_use]
    pub fn undone() -> Self {
        Self::Refused(DieselError::RollbackTransaction)
    }

    /// Whether it is [`Error::undone`].
    #[must_use]
    pub fn is_undone(&self) -> bool {
        matches!(self, Self::Refused(DieselError::RollbackTransaction))
    }

    /// Whether the rows contradict the schema's rules: trying the same again cannot help.
    #[must_use]
    pub fn is_constraint_violation(&self) -> bool {
        use DatabaseErrorKind::{
            CheckViolation, ForeignKeyViolation, NotNullViolation, UniqueViolation,
        };
        matches!(
            self,
            Self::Refused(DieselError::DatabaseError(
                CheckViolation | ForeignKeyViolation | NotNullViolation | UniqueViolation,
                _
            ))
        )
    }
}

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        let lost = match &error {
            DieselError::DatabaseError(kind, information) => {
                matches!(
                    kind,
                    DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand
                ) || SHUTTING_DOWN
                    .iter()
                    .any(|text| information.message().starts_with(text))
            }
            DieselError::BrokenTransactionManager => true,
            _ => false,
        };
        if lost {
            Self::Unavailable {
                at: "the server".into(),
                problem: describe(&error),
            }
        } else {
            Self::Refused(error)
        }
    }
}

/// The server's last words before it goes (57P01 to 57P03, 53300); diesel passes on no SQLSTATE to tell them by.
const SHUTTING_DOWN: [&str; 4] = [
    "terminating connection",
    "the database system is",
    "sorry, too many clients already",
    "remaining connection slots are reserved",
];

/// The server's text with its detail, which names the row.
fn describe(error: &DieselError) -> String {
    match error {
        DieselError::DatabaseError(_, information) => match information.details() {
            Some(details) => format!("{} ({details})", information.message()),
            None => information.message().to_owned(),
        },
        other => other.to_string(),
    }
}
