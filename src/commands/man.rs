//! `stockctl man`: the manual, made from the definition of the command line.

use std::io::Write;
use std::path::Path;

use clap::Command;
use clap_mangen::Man;

use super::{EXIT_USAGE, Failure, say};

/// When this version was made, for the foot of each page; the date of the package's changelog.
const DATE: &str = "2026-11-26";

/// What each page ends with. In roff: a line that begins with a dot is a command.
const COMMON: &str = r#".SH "EXIT STATUS"
.TP
.B 0
Done.
.TP
.B 1
A bug; an answer that is none of this API's; an order that \fBorders place \-\-wait\fR saw pending to the end.
.TP
.B 2
Wrong usage of the command line.
.TP
.B 3
Wrong configuration, or queues that exist with other arguments.
.TP
.B 4
A server cannot be reached, did not start, or the API answered 503; a table stays in use or another process migrates.
.TP
.B 5
A check failed: \fBaudit\fR found a violation, \fBstatus\fR something that needs a hand, the API refused what was asked for.
.SH ENVIRONMENT
.TP
.B STOCKCTL_CONFIG
The configuration file, where \fB\-\-config\fR names none.
.TP
.BI STOCKCTL__ SECTION __ KEY
The value of a key of the configuration, over that of the file: STOCKCTL__DATABASE__URL.
.TP
.BR STOCKCTL_URL ", " STOCKCTL_API_KEY
Where the HTTP API is, and the key to call it with, for \fBorders\fR and \fBproducts\fR.
.TP
.B NO_COLOR
Nothing is coloured, whatever its value.
.SH FILES
.TP
.I .stockctl/config.toml
The configuration unless one is named; \fBstockctl up\fR writes it.
.TP
.I /etc/stockctl/stockctl.toml
The configuration where that is not there; for root and the group stockctl.
.TP
.I default.toml
Every key with what it means, beside the documentation (/usr/share/doc/stockctl).
"#;

/// Writes a page for each subcommand that is not hidden into a directory, or the main page to standard output.
///
/// # Errors
/// The directory cannot be written to.
pub fn run(command_line: Command, directory: Option<&Path>) -> Result<(), Failure> {
    let mut command_line = command_line.disable_help_subcommand(true);
    command_line.build();
    let version = command_line.get_version().unwrap_or_default().to_owned();
    let Some(directory) = directory else {
        let mut page = Vec::new();
        render(command_line, &version, &mut page).map_err(Failure::bug)?;
        say(String::from_utf8(page).map_err(Failure::bug)?.trim_end());
        return Ok(());
    };
    std::fs::create_dir_all(directory)
        .and_then(|()| write_all(&command_line, &version, directory))
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

fn write_all(command: &Command, version: &str, directory: &Path) -> std::io::Result<()> {
    let shown = command.get_subcommands().filter(|one| !one.is_hide_set());
    for subcommand in shown {
        write_all(subcommand, version, directory)?;
    }
    let man = Man::new(command.clone());
    let mut file = std::fs::File::create(directory.join(man.get_filename()))?;
    render(command.clone(), version, &mut file)
}

fn render(command: Command, version: &str, out: &mut dyn Write) -> std::io::Result<()> {
    let (has_options, has_subcommands) = (
        command.get_arguments().any(|one| !one.is_hide_set()),
        command.get_subcommands().any(|one| !one.is_hide_set()),
    );
    let man = Man::new(command)
        .date(DATE)
        .source(format!("stockctl {version}"))
        .manual("stockctl");
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    if has_options {
        man.render_options_section(out)?;
    }
    if has_subcommands {
        man.render_subcommands_section(out)?;
    }
    out.write_all(COMMON.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_of_the_pages_is_the_package_s() {
        let changelog = include_str!("../../config/debian/changelog");
        let newest = changelog.lines().find(|line| line.starts_with(" -- "));
        let (_, date) = newest
            .and_then(|line| line.split_once(">  "))
            .expect("a date");
        let date = chrono::DateTime::parse_from_rfc2822(date).expect("a date");
        assert_eq!(DATE, date.date_naive().to_string());
    }

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
