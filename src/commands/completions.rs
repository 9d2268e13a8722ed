//! `stockctl completions`: what a shell has to know to complete this command line.

use std::fmt::Write;

use clap::{Arg, Command, ValueHint};
use clap_complete::Shell;

use super::{Failure, say};

/// Prints the completions of a command line for a shell.
///
/// # Errors
/// They are no text, which no shell could read either.
pub fn run(command_line: Command, shell: Shell) -> Result<(), Failure> {
    let name = command_line.get_name().to_owned();
    let mut command_line = without_files(command_line);
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command_line, name, &mut script);
    let mut script = String::from_utf8(script).map_err(Failure::bug)?;
    if shell == Shell::Fish {
        add_positionals(&command_line, &[], &mut script);
    }
    say(script.trim_end());
    Ok(())
}

/// What is no path is not completed with one.
fn without_files(command: Command) -> Command {
    let hint = |argument: Arg| {
        let is_unknown = argument.get_value_hint() == ValueHint::Unknown
            && argument.get_possible_values().is_empty();
        if is_unknown && argument.get_action().takes_values() {
            argument.value_hint(ValueHint::Other)
        } else {
            argument
        }
    };
    command.mut_args(hint).mut_subcommands(without_files)
}

fn is_path(argument: &Arg) -> bool {
    let hint = argument.get_value_hint();
    matches!(
        hint,
        ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath
    )
}

/// The generator for fish knows options only: what stands by its place would be completed with files.
fn add_positionals(command: &Command, path: &[&str], script: &mut String) {
    let condition = match path {
        [command] => format!("__fish_stockctl_using_subcommand {command}"),
        [command, subcommand] => format!(
            "__fish_stockctl_using_subcommand {command}; and __fish_seen_subcommand_from {subcommand}"
        ),
        // Subcommands are completed by what there is already.
        _ => String::new(),
    };
    let of_subcommands = command.has_subcommands() || condition.is_empty();
    if !of_subcommands && !command.get_positionals().any(is_path) {
        let values: Vec<String> = command
            .get_positionals()
            .flat_map(Arg::get_possible_values)
            .map(|value| value.get_name().to_owned())
            .collect();
        let _ = write!(script, "complete -c stockctl -n \"{condition}\" -f");
        if !values.is_empty() {
            let _ = write!(script, " -a \"{}\"", values.join(" "));
        }
        script.push('\n');
    }
    for subcommand in command.get_subcommands() {
        add_positionals(
            subcommand,
            &[path, &[subcommand.get_name()]].concat(),
            script,
        );
    }
}
