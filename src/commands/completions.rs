//! `stockctl completions`: what a shell has to know to complete this command line.

use clap_complete::Shell;

use super::{Failure, say};

/// Prints the completions of a command line for a shell.
///
/// # Errors
/// They are no text, which no shell could read either.
pub fn run(mut command_line: clap::Command, shell: Shell) -> Result<(), Failure> {
    let name = command_line.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command_line, name, &mut script);
    let script = String::from_utf8(script).map_err(Failure::bug)?;
    say(script.trim_end());
    Ok(())
}
