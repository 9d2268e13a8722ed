//! The command line: what is parsed, and which command it means.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use crate::commands::configuration::ConfigCommand;
use crate::commands::dlq::Dlq;
use crate::commands::keys::KeysCommand;
use crate::commands::work::WorkQueue;

/// One aggregated view of your vendors' stock; every order decided exactly once.
#[derive(Debug, Parser)]
#[command(name = "stockctl", version, max_term_width = 100)]
pub struct Cli {
    /// Configuration file [default: .stockctl/config.toml, or else /etc/stockctl/stockctl.toml, if there is one]
    #[arg(
        long,
        short,
        global = true,
        value_name = "FILE",
        env = "STOCKCTL_CONFIG"
    )]
    pub config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything on this machine, on a private PostgreSQL and a private RabbitMQ
    Up {
        /// Where the servers' data and the configuration live
        #[arg(long, value_name = "DIR", default_value = ".stockctl")]
        data_dir: PathBuf,
        /// Start over: remove the data of earlier starts
        #[arg(long)]
        fresh: bool,
        /// Address of the HTTP API [default: 127.0.0.1:8080, or a free port when that is taken]
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<SocketAddr>,
        /// Start PostgreSQL and RabbitMQ only, and print their addresses as JSON
        #[arg(long, conflicts_with = "listen")]
        servers_only: bool,
        /// End when standard input is closed
        #[arg(long)]
        until_stdin_closes: bool,
    },
    /// Serve the HTTP API
    Serve,
    /// Bring the vendors' stock in, by the schedule
    Sync {
        /// Run once and report
        #[arg(long)]
        once: bool,
        /// Only this vendor; may be given more than once
        #[arg(long = "vendor", value_name = "VENDOR")]
        vendors: Vec<String>,
        /// Believe a vendor that lists nothing where there was something
        #[arg(long)]
        allow_empty: bool,
        /// With --once: report as JSON, a line for each vendor
        #[arg(long, requires = "once")]
        json: bool,
    },
    /// Work on the queues: decide orders, tell the vendors
    Work {
        /// Only this queue; may be given more than once
        #[arg(long = "queue", value_name = "QUEUE", value_enum)]
        queues: Vec<WorkQueue>,
    },
    /// Place, look at and cancel orders, through the HTTP API
    Orders(crate::commands::orders::Orders),
    /// Look at products, through the HTTP API
    Products(crate::commands::products::Products),
    /// Print the description of the HTTP API (OpenAPI 3.1)
    Openapi,
    /// Print what a shell has to know to complete this command line
    Completions {
        /// The shell
        #[arg(value_name = "SHELL", value_enum)]
        shell: Shell,
    },
    /// Write the man pages
    Man {
        /// Where to: a page for each subcommand [default: the main page only, to standard output]
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Show the whole on one screen, and what needs a hand (exit code 5 when something does)
    Status {
        /// As JSON, a document for each look
        #[arg(long)]
        json: bool,
        /// Again and again until SIGINT or SIGTERM, so many seconds apart; 2 when none are given
        #[arg(
            long,
            value_name = "SECONDS",
            num_args = 0..=1,
            default_missing_value = "2",
            value_parser = clap::value_parser!(u64).range(1..=86400)
        )]
        watch: Option<u64>,
    },
    /// Look at the configuration, and whether it will do
    Config {
        /// What to do.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Measure how fast an installation is: it places real orders
    Bench(crate::commands::bench::Options),
    /// Bring the database schema up to date
    Migrate {
        /// The vendors' databases too
        #[arg(long)]
        vendors: bool,
    },
    /// Look at dead letters, replay or drop them
    Dlq {
        /// What to do.
        #[command(subcommand)]
        command: Dlq,
    },
    /// Say who may call the API: make, list, rotate and revoke keys
    Keys {
        /// What to do.
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Check on the live data that nothing was lost, applied twice or oversold
    Audit {
        /// Report as JSON, a document for each round
        #[arg(long)]
        json: bool,
        /// Again and again until SIGINT or SIGTERM, so many seconds apart; 60 when none are given
        #[arg(
            long,
            value_name = "SECONDS",
            num_args = 0..=1,
            default_missing_value = "60",
            value_parser = clap::value_parser!(u64).range(1..=86400)
        )]
        watch: Option<u64>,
    },
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Completions are offered for hidden subcommands too, which would not be hidden by that: whoever hides the first one
    /// has to mend `completions`.
    #[test]
    fn what_is_completed_is_not_hidden() {
        fn check(command: &clap::Command) {
            for subcommand in command.get_subcommands() {
                assert!(!subcommand.is_hide_set(), "{}", subcommand.get_name());
                check(subcommand);
            }
        }
        check(&Cli::command());
    }

    proptest::proptest! {
        #[test]
        fn whatever_the_words_they_are_a_command_or_told_with_what_would_do(
            words in proptest::collection::vec(
                "serve|up|orders|place|list|show|dlq|replay|drop|orders_dlq|keys|create|expire|--in|--scope|--limit|--id|--json|--config|-c|--watch|status|audit|bench|--wait|[a-z]{1,3}=-?[0-9]{1,20}|[0-9]{1,9}[smhdy]|-{0,2}[a-z-]{0,8}|[0-9]{1,20}|\\PC{0,9}",
                0..6,
            ),
        ) {
            let words = std::iter::once("stockctl".to_owned()).chain(words);
            if let Err(error) = Cli::try_parse_from(words) {
                proptest::prop_assert!([0, 2].contains(&error.exit_code()));
                proptest::prop_assert!(!error.to_string().is_empty());
            }
        }
    }
}
