//! `stockctl man`: the manual, made from the definition of the command line.

use std::path::Path;

use super::{EXIT_USAGE, Failure, say};

/// Writes a page for each subcommand that is not hidden into a directory, or the main page to standard output.
///
/// # Errors
/// The directory cannot be written to.
pub fn run(command_line: clap::Command, directory: Option<&Path>) -> Result<(), Failure> {
    let Some(directory) = directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command_line.disable_help_subcommand(true))
            .render(&mut page)
            .map_err(Failure::bug)?;
        say(String::from_utf8(page).map_err(Failure::bug)?.trim_end());
        return Ok(());
    };
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(command_line, directory))
        .map_err(|error| {
            Failure::new(
                EXIT_USAGE,
                format!(
                    "the man pages cannot be written into {}: {error}; name a directory that you may write to",
                    directory.display()
                ),
            )
        })
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    #[test]
    fn what_is_hidden_has_no_page() {
        let directory = tempfile::tempdir().expect("a directory");
        let command_line = Command::new("shop").subcommands([
            Command::new("open").subcommands([Command::new("doors")]),
            Command::new("secret").hide(true),
        ]);
        run(command_line, Some(directory.path())).expect("written");
        let mut names: Vec<_> = std::fs::read_dir(directory.path())
            .expect("readable")
            .map(|entry| entry.expect("readable").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["shop-open-doors.1", "shop-open.1", "shop.1"]);
        let page = std::fs::read_to_string(directory.path().join("shop.1")).expect("readable");
        assert!(page.contains("shop\\-open(1)"), "{page}");
        assert!(!page.contains("secret"), "{page}");
    }
}
