//! Bugs that are planted on purpose, so that `make chaos-mutants` can show that the harness finds them. Nothing of this is
//! in a build without the cargo feature `fault-injection`, and a release build with that feature does not compile.

#[cfg(all(feature = "fault-injection", not(debug_assertions)))]
compile_error!("the feature fault-injection breaks the product on purpose; build without it");

/// A bug that can be planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A consumer acknowledges before it has decided.
    AcknowledgeBeforeCommit,
    /// A message counts as published once it was sent.
    PublishWithoutConfirm,
    /// An order that was decided is decided again when it is delivered again.
    DecideAgain,
}

/// Whether a bug is planted: `STOCKCTL_FAULT_INJECTION` names it, in a build for that.
#[cfg(feature = "fault-injection")]
#[must_use]
pub fn is_planted(bug: Bug) -> bool {
    let name = match bug {
        Bug::AcknowledgeBeforeCommit => "acknowledge-before-commit",
        Bug::PublishWithoutConfirm => "publish-without-confirm",
        Bug::DecideAgain => "decide-again",
    };
    std::env::var("STOCKCTL_FAULT_INJECTION").is_ok_and(|planted| planted == name)
}

/// Nothing is planted in this build.
#[cfg(not(feature = "fault-injection"))]
#[must_use]
pub const fn is_planted(_: Bug) -> bool {
    false
}

/// Aborts the process, as a crash would, at an order with the reference `fault-injection: abort`.
#[cfg(feature = "fault-injection")]
pub fn swallow_order(reference: Option<&str>) {
    if reference == Some("fault-injection: abort") {
        std::process::abort();
    }
}

/// No order is poisonous in this build.
#[cfg(not(feature = "fault-injection"))]
pub const fn swallow_order(_: Option<&str>) {}

/// Aborts the process, as a crash would, at a take of the product `poison`.
#[cfg(feature = "fault-injection")]
pub fn swallow_update(product: &str, delta: i64) {
    if product == "poison" && delta < 0 {
        std::process::abort();
    }
}

/// No update is poisonous in this build.
#[cfg(not(feature = "fault-injection"))]
pub const fn swallow_update(_: &str, _: i64) {}
