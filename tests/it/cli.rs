//! The command line, as processes: what it says, and the exit codes that scripts rely on.

use nix::sys::signal::Signal;

use crate::support::keep_alive::KeepAlive;
use crate::support::{Process, Servers, Shop, ShopOptions};

/// A password that stands in every URL of a test, and must stand nowhere else.
const SECRET: &str = "hush-hush";

/// A configuration in which nothing can be reached.
fn nowhere() -> (tempfile::TempDir, String) {
    let text = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[database]\nurl = \"postgres://u:{SECRET}@127.0.0.1:1/ordersdb\"\n\
         [rabbitmq]\nurl = \"amqp://u:{SECRET}@127.0.0.1:2/%2f\"\n\
         [vendors.vendorA]\ndatabase_url = \"postgres://u:{SECRET}@127.0.0.1:3/vendoradb\"\n\
         api_url = \"http://u:{SECRET}@127.0.0.1:4/\"\n"
    );
    written(&text)
}

fn written(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("config.toml");
    std::fs::write(&file, text).expect("written");
    let file = file.to_str().expect("UTF-8").to_owned();
    (directory, file)
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "most of it is the text")]
async fn the_help_texts_say_what_there_is() {
    let mut texts = String::new();
    for command in [
        "",
        "up",
        "serve",
        "sync",
        "work",
        "orders",
        "orders place",
        "orders show",
        "orders list",
        "orders cancel",
        "products",
        "products list",
        "products show",
        "openapi",
        "completions",
        "man",
        "status",
        "config",
        "config show",
        "bench",
        "migrate",
        "dlq",
        "dlq list",
        "dlq show",
        "dlq replay",
        "dlq drop",
        "audit",
    ] {
        let arguments: Vec<&str> = command.split_terminator(' ').chain(["--help"]).collect();
        let ended = Process::run(&arguments).await;
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
        texts.push_str(&format!(
            "$ stockctl {}\n{}\n",
            arguments.join(" "),
            ended.stdout
        ));
    }
    insta::assert_snapshot!(texts, @"
    $ stockctl --help
    One aggregated view of your vendors' stock; every order decided exactly once

    Usage: stockctl [OPTIONS] <COMMAND>

    Commands:
      up           Run everything on this machine, on a private PostgreSQL and a private RabbitMQ
      serve        Serve the HTTP API
      sync         Bring the vendors' stock in, by the schedule
      work         Work on the queues: decide orders, tell the vendors
      orders       Place, look at and cancel orders, through the HTTP API
      products     Look at products, through the HTTP API
      openapi      Print the description of the HTTP API (OpenAPI 3.1)
      completions  Print what a shell has to know to complete this command line
      man          Write the man pages
      status       Show the whole on one screen, and what needs a hand (exit code 5 when something does)
      config       Look at the configuration, and whether it will do
      bench        Measure how fast an installation is: it places real orders
      migrate      Bring the database schema up to date
      dlq          Look at dead letters, replay or drop them
      keys         Say who may call the API: make, list, rotate and revoke keys
      audit        Check on the live data that nothing was lost, applied twice or oversold
      help         Print this message or the help of the given subcommand(s)

    Options:
      -c, --config <FILE>  Configuration file [default: .stockctl/config.toml, or else
                           /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
      -h, --help           Print help
      -V, --version        Print version

    $ stockctl up --help
    Run everything on this machine, on a private PostgreSQL and a private RabbitMQ

    Usage: stockctl up [OPTIONS]

    Options:
      -c, --config <FILE>       Configuration file [default: .stockctl/config.toml, or else
                                /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
          --data-dir <DIR>      Where the servers' data and the configuration live [default: .stockctl]
          --fresh               Start over: remove the data of earlier starts
          --listen <ADDRESS>    Address of the HTTP API [default: 127.0.0.1:8080, or a free port when
                                that is taken]
          --servers-only        Start PostgreSQL and RabbitMQ only, and print their addresses as JSON
          --until-stdin-closes  End when standard input is closed
      -h, --help                Print help

    $ stockctl serve --help
    Serve the HTTP API

    Usage: stockctl serve [OPTIONS]

    Options:
      -c, --config <FILE>  Configuration file [default: .stockctl/config.toml, or else
                           /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
      -h, --help           Print help

    $ stockctl sync --help
    Bring the vendors' stock in, by the schedule

    Usage: stockctl sync [OPTIONS]

    Options:
      -c, --config <FILE>    Configuration file [default: .stockctl/config.toml, or else
                             /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
          --once             Run once and report
          --vendor <VENDOR>  Only this vendor; may be given more than once
          --allow-empty      Believe a vendor that lists nothing where there was something
          --json             With --once: report as JSON, a line for each vendor
      -h, --help             Print help

    $ stockctl work --help
    Work on the queues: decide orders, tell the vendors

    Usage: stockctl work [OPTIONS]

    Options:
      -c, --config <FILE>
              Configuration file [default: .stockctl/config.toml, or else /etc/stockctl/stockctl.toml,
              if there is one]
              
              [env: STOCKCTL_CONFIG=]

          --queue <QUEUE>
              Only this queue; may be given more than once

              Possible values:
              - orders:      `orders_queue`: decide orders
              - vendor-sync: `vendor_sync`: tell the vendors
              - webhooks:    `webhooks`: tell receivers what happens

      -h, --help
              Print help (see a summary with '-h')

    $ stockctl orders --help
    Place, look at and cancel orders, through the HTTP API

    Usage: stockctl orders [OPTIONS] <COMMAND>

    Commands:
      place   Place an order: it is confirmed whole, or not at all
      show    Show an order, with what happened to it
      list    List orders, the newest first
      cancel  Take an order back; what was taken for it is returned
      help    Print this message or the help of the given subcommand(s)

    Options:
      -c, --config <FILE>  Configuration file [default: .stockctl/config.toml, or else
                           /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
          --url <URL>      Base of the HTTP API [default: http.listen of the configuration, with
                           https:// where it has TLS] [env: STOCKCTL_URL]
          --ca <FILE>      PEM file of authorities that are trusted beside the system's, for https:
                           [env: STOCKCTL_CA]
          --json           Print the API's own answers, a line each
      -h, --help           Print help

    $ stockctl orders place --help
    Place an order: it is confirmed whole, or not at all

    Usage: stockctl orders place [OPTIONS] <PRODUCT=QUANTITY>...

    Arguments:
      <PRODUCT=QUANTITY>...  What is ordered, such as p1=2

    Options:
      -c, --config <FILE>     Configuration file [default: .stockctl/config.toml, or else
                              /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
          --reference <TEXT>  A remark of yours, which is shown with the order
          --url <URL>         Base of the HTTP API [default: http.listen of the configuration, with
                              https:// where it has TLS] [env: STOCKCTL_URL]
          --ca <FILE>         PEM file of authorities that are trusted beside the system's, for https:
                              [env: STOCKCTL_CA]
          --key <KEY>         Your name for this order: with the same key it is the same order, however
                              often it is placed [default: a new one]
          --json              Print the API's own answers, a line each
          --wait <SECONDS>    Wait so many seconds for the decision (exit code 5 unless it is confirmed,
                              1 when it is pending still)
      -h, --help              Print help

    $ stockctl orders show --help
    Show an order, with what happened to it

    Usage: stockctl orders show [OPTIONS] <ID>

    Arguments:
      <ID>  The order's id

    Options:
      -c, --config <FILE>  Configuration file [default: .stockctl/config.toml, or else
                           /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
          --url <URL>      Base of the HTTP API [default: http.listen of the configuration, with
                           https:// where it has TLS] [env: STOCKCTL_URL]
          --ca <FILE>      PEM file of authorities that are trusted beside the system's, for https:
                           [env: STOCKCTL_CA]
          --json           Print the API's own answers, a line each
      -h, --help           Print help

    $ stockctl orders list --help
    List orders, the newest first

    Usage: stockctl orders list [OPTIONS]

    Options:
      -c, --config <FILE>      Configuration file [default: .stockctl/config.toml, or else
                               /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
          --status <STATUS>    Only orders that stand so [possible values: pending, confirmed, rejected,
                               failed, cancelled]
          --url <URL>          Base of the HTTP API [default: http.listen of the configuration, with
                               https:// where it has TLS] [env: STOCKCTL_URL]
          --ca <FILE>          PEM file of authorities that are trusted beside the system's, for https:
                               [env: STOCKCTL_CA]
          --product <PRODUCT>  Only orders with a line of this product
          --json               Print the API's own answers, a line each
          --limit <N>          At most so many: 1 to 10000 [default: 50]
      -h, --help               Print help

    $ stockctl orders cancel --help
    Take an order back; what was taken for it is returned

    Usage: stockctl orders cancel [OPTIONS] <ID>

    Arguments:
      <ID>  The order's id

    Options:
      -c, --config <FILE>  Configuration file [default: .stockctl/config.toml, or else
                           /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
          --url <URL>      Base of the HTTP API [default: http.listen of the configuration, with
                           https:// where it has TLS] [env: STOCKCTL_URL]
          --ca <FILE>      PEM file of authorities that are trusted beside the system's, for https:
                           [env: STOCKCTL_CA]
          --json           Print the API's own answers, a line each
      -h, --help           Print help

    $ stockctl products --help
    Look at products, through the HTTP API

    Usage: stockctl products [OPTIONS] <COMMAND>

    Commands:
      list  List products, by id
      show  Show a product, at each of its vendors
      help  Print this message or the help of the given subcommand(s)

    Options:
      -c, --config <FILE>  Configuration file [default: .stockctl/config.toml, or else
                           /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
          --url <URL>      Base of the HTTP API [default: http.listen of the configuration, with
                           https:// where it has TLS] [env: STOCKCTL_URL]
          --ca <FILE>      PEM file of authorities that are trusted beside the system's, for https:
                           [env: STOCKCTL_CA]
          --json           Print the API's own answers, a line each
      -h, --help           Print help

    $ stockctl products list --help
    List products, by id

    Usage: stockctl products list [OPTIONS]

    Options:
      -c, --config <FILE>    Configuration file [default: .stockctl/config.toml, or else
                             /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
          --query <TEXT>     Only products with this in their id or a name, in upper or lower case
          --url <URL>        Base of the HTTP API [default: http.listen of the configuration, with
                             https:// where it has TLS] [env: STOCKCTL_URL]
          --ca <FILE>        PEM file of authorities that are trusted beside the system's, for https:
                             [env: STOCKCTL_CA]
          --vendor <VENDOR>  Only products that this vendor has listed
          --in-stock         Only products that are available; with --vendor, at that vendor
          --json             Print the API's own answers, a line each
          --limit <N>        At most so many: 1 to 10000 [default: 50]
      -h, --help             Print help

    $ stockctl products show --help
    Show a product, at each of its vendors

    Usage: stockctl products show [OPTIONS] <ID>

    Arguments:
      <ID>  The product's id

    Options:
      -c, --config <FILE>  Configuration file [default: .stockctl/config.toml, or else
                           /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
          --url <URL>      Base of the HTTP API [default: http.listen of the configuration, with
                           https:// where it has TLS] [env: STOCKCTL_URL]
          --ca <FILE>      PEM file of authorities that are trusted beside the system's, for https:
                           [env: STOCKCTL_CA]
          --json           Print the API's own answers, a line each
      -h, --help           Print help

    $ stockctl openapi --help
    Print the description of the HTTP API (OpenAPI 3.1)

    Usage: stockctl openapi [OPTIONS]

    Options:
      -c, --config <FILE>  Configuration file [default: .stockctl/config.toml, or else
                           /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
      -h, --help           Print help

    $ stockctl completions --help
    Print what a shell has to know to complete this command line

    Usage: stockctl completions [OPTIONS] <SHELL>

    Arguments:
      <SHELL>  The shell [possible values: bash, elvish, fish, powershell, zsh]

    Options:
      -c, --config <FILE>  Configuration file [default: .stockctl/config.toml, or else
                           /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
      -h, --help           Print help

    $ stockctl man --help
    Write the man pages

    Usage: stockctl man [OPTIONS] [DIR]

    Arguments:
      [DIR]  Where to: a page for each subcommand [default: the main page only, to standard output]

    Options:
      -c, --config <FILE>  Configuration file [default: .stockctl/config.toml, or else
                           /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
      -h, --help           Print help

    $ stockctl status --help
    Show the whole on one screen, and what needs a hand (exit code 5 when something does)

    Usage: stockctl status [OPTIONS]

    Options:
      -c, --config <FILE>      Configuration file [default: .stockctl/config.toml, or else
                               /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
          --json               As JSON, a document for each look
          --watch [<SECONDS>]  Again and again until SIGINT or SIGTERM, so many seconds apart; 2 when
                               none are given
      -h, --help               Print help

    $ stockctl config --help
    Look at the configuration, and whether it will do

    Usage: stockctl config [OPTIONS] <COMMAND>

    Commands:
      check  Say whether the configuration will do; nothing is connected
      show   Show each key with its value and where that comes from; passwords are hidden
      help   Print this message or the help of the given subcommand(s)

    Options:
      -c, --config <FILE>  Configuration file [default: .stockctl/config.toml, or else
                           /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
      -h, --help           Print help

    $ stockctl config show --help
    Show each key with its value and where that comes from; passwords are hidden

    Usage: stockctl config show [OPTIONS]

    Options:
      -c, --config <FILE>  Configuration file [default: .stockctl/config.toml, or else
                           /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
          --json           As JSON: for each key its value and its origin
      -h, --help           Print help

    $ stockctl bench --help
    Measure how fast an installation is: it places real orders

    Usage: stockctl bench [OPTIONS]

    Options:
      -c, --config <FILE>        Configuration file [default: .stockctl/config.toml, or else
                                 /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
          --url <URL>            Base of the HTTP API [default: http://127.0.0.1:8080]
          --api-key <KEY>        An API key with the scopes orders:write and orders:read; better in the
                                 variable, since everybody on the machine can read arguments [env:
                                 STOCKCTL_API_KEY]
          --connections <N>      Connections, each with one request at a time [default: 64]
          --rate <N>             Orders a second, whatever the answers take; without it each connection
                                 waits for its answer
          --duration <SECONDS>   Seconds that are measured [default: 30]
          --warm-up <SECONDS>    Seconds before that which are not [default: 5]
          --drain <SECONDS>      Seconds to wait in the end for what was accepted to be decided and told
                                 [default: 60]
          --products <N>         Products to order: the first so many by id [default: 1000]
          --distribution <NAME>  Which products are ordered how often: uniform, zipf, or hot (all orders
                                 for one) [default: uniform] [possible values: uniform, zipf, hot]
          --zipf-exponent <S>    The exponent of zipf: the k-th product is ordered in proportion to 1 /
                                 k^S [default: 1]
          --lines <N>            Lines of each order [default: 1]
          --quantity <N>         Units of each line [default: 1]
          --json                 Report as JSON
      -h, --help                 Print help

    $ stockctl migrate --help
    Bring the database schema up to date

    Usage: stockctl migrate [OPTIONS]

    Options:
      -c, --config <FILE>  Configuration file [default: .stockctl/config.toml, or else
                           /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
          --vendors        The vendors' databases too
      -h, --help           Print help

    $ stockctl dlq --help
    Look at dead letters, replay or drop them

    Usage: stockctl dlq [OPTIONS] <COMMAND>

    Commands:
      list    List letters of one queue or of all, and change nothing
      show    Show letters whole, with their headers, and change nothing
      replay  Send letters back to the queue that they came from, as if they were new
      drop    Drop letters: their orders are cancelled, what was taken is returned, the letters are kept
              in the database
      help    Print this message or the help of the given subcommand(s)

    Options:
      -c, --config <FILE>  Configuration file [default: .stockctl/config.toml, or else
                           /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
      -h, --help           Print help

    $ stockctl dlq list --help
    List letters of one queue or of all, and change nothing

    Usage: stockctl dlq list [OPTIONS] [QUEUE]

    Arguments:
      [QUEUE]
              The queue; all of them unless said

              Possible values:
              - orders_dlq:      Orders that could not be decided
              - vendor_sync_dlq: Updates that a vendor could not be told
              - webhooks_dlq:    Events that a receiver of webhooks has not taken

    Options:
      -c, --config <FILE>
              Configuration file [default: .stockctl/config.toml, or else /etc/stockctl/stockctl.toml,
              if there is one]
              
              [env: STOCKCTL_CONFIG=]

          --id <ID>
              Only the letter with this message id; may be given more than once

          --reason <CODE>
              Only letters with this reason, such as retries_exhausted, invalid_message, crash_loop,
              update_conflict, delivery_limit

          --order <ORDER>
              Only letters that concern this order

          --limit <N>
              At most so many, from the front of the queue: 1 to 10000

          --json
              A JSON document on each line

      -h, --help
              Print help (see a summary with '-h')

    $ stockctl dlq show --help
    Show letters whole, with their headers, and change nothing

    Usage: stockctl dlq show [OPTIONS] <QUEUE>

    Arguments:
      <QUEUE>
              The queue

              Possible values:
              - orders_dlq:      Orders that could not be decided
              - vendor_sync_dlq: Updates that a vendor could not be told
              - webhooks_dlq:    Events that a receiver of webhooks has not taken

    Options:
      -c, --config <FILE>
              Configuration file [default: .stockctl/config.toml, or else /etc/stockctl/stockctl.toml,
              if there is one]
              
              [env: STOCKCTL_CONFIG=]

          --id <ID>
              Only the letter with this message id; may be given more than once

          --reason <CODE>
              Only letters with this reason, such as retries_exhausted, invalid_message, crash_loop,
              update_conflict, delivery_limit

          --order <ORDER>
              Only letters that concern this order

          --limit <N>
              At most so many, from the front of the queue: 1 to 10000

          --json
              A JSON document for each letter

      -h, --help
              Print help (see a summary with '-h')

    $ stockctl dlq replay --help
    Send letters back to the queue that they came from, as if they were new

    Usage: stockctl dlq replay [OPTIONS] <QUEUE>

    Arguments:
      <QUEUE>
              The queue

              Possible values:
              - orders_dlq:      Orders that could not be decided
              - vendor_sync_dlq: Updates that a vendor could not be told
              - webhooks_dlq:    Events that a receiver of webhooks has not taken

    Options:
      -c, --config <FILE>
              Configuration file [default: .stockctl/config.toml, or else /etc/stockctl/stockctl.toml,
              if there is one]
              
              [env: STOCKCTL_CONFIG=]

          --id <ID>
              Only the letter with this message id; may be given more than once

          --reason <CODE>
              Only letters with this reason, such as retries_exhausted, invalid_message, crash_loop,
              update_conflict, delivery_limit

          --order <ORDER>
              Only letters that concern this order

          --limit <N>
              At most so many, from the front of the queue: 1 to 10000

          --all
              Every letter of the queue

          --dry-run
              Say what would be done, and change nothing

          --json
              Report as one JSON document

      -h, --help
              Print help (see a summary with '-h')

    $ stockctl dlq drop --help
    Drop letters: their orders are cancelled, what was taken is returned, the letters are kept in the
    database

    Usage: stockctl dlq drop [OPTIONS] <QUEUE>

    Arguments:
      <QUEUE>
              The queue

              Possible values:
              - orders_dlq:      Orders that could not be decided
              - vendor_sync_dlq: Updates that a vendor could not be told
              - webhooks_dlq:    Events that a receiver of webhooks has not taken

    Options:
      -c, --config <FILE>
              Configuration file [default: .stockctl/config.toml, or else /etc/stockctl/stockctl.toml,
              if there is one]
              
              [env: STOCKCTL_CONFIG=]

          --id <ID>
              Only the letter with this message id; may be given more than once

          --reason <CODE>
              Only letters with this reason, such as retries_exhausted, invalid_message, crash_loop,
              update_conflict, delivery_limit

          --order <ORDER>
              Only letters that concern this order

          --limit <N>
              At most so many, from the front of the queue: 1 to 10000

          --all
              Every letter of the queue

          --dry-run
              Say what would be done, and change nothing

          --json
              Report as one JSON document

          --yes
              Do not ask

      -h, --help
              Print help (see a summary with '-h')

    $ stockctl audit --help
    Check on the live data that nothing was lost, applied twice or oversold

    Usage: stockctl audit [OPTIONS]

    Options:
      -c, --config <FILE>      Configuration file [default: .stockctl/config.toml, or else
                               /etc/stockctl/stockctl.toml, if there is one] [env: STOCKCTL_CONFIG=]
          --json               Report as JSON, a document for each round
          --watch [<SECONDS>]  Again and again until SIGINT or SIGTERM, so many seconds apart; 60 when
                               none are given
      -h, --help               Print help
    ");
}

#[tokio::test]
async fn bash_completes_subcommands_options_and_values() {
    let (_directory, script) = written(&completions("bash").await);
    // What bash does when the tab key is pressed behind the last of these words.
    let ask = "source \"$0\"; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
               _stockctl stockctl \"${@: -1}\" \"${@: -2:1}\"; echo \"${COMPREPLY[*]}\"";
    for (words, expected) in [
        (&["dlq", "re"][..], "replay"),
        (&["sync", "--al"], "--allow-empty"),
        (&["work", "--queue", "v"], "vendor-sync"),
        (&["completions", "pow"], "powershell"),
    ] {
        let output = std::process::Command::new("bash")
            .args(["--norc", "-euc", ask, &script, "stockctl"])
            .args(words)
            .output()
            .expect("bash runs");
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (stdout.trim(), stderr.as_ref()),
            (expected, ""),
            "{words:?}"
        );
    }
}

#[tokio::test]
async fn there_are_completions_for_each_shell() {
    for (shell, line) in [
        ("bash", "complete -F _stockctl"),
        ("elvish", "set edit:completion:arg-completer[stockctl]"),
        ("fish", "complete -c stockctl"),
        (
            "powershell",
            "Register-ArgumentCompleter -Native -CommandName 'stockctl'",
        ),
        ("zsh", "#compdef stockctl"),
    ] {
        let script = completions(shell).await;
        assert!(script.contains(line), "{shell}: {script}");
        assert!(script.contains("allow-empty"), "{shell}: {script}");
    }
    let ended = Process::run(&["completions", "cmd"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
    assert!(ended.stderr.contains("powershell"), "{}", ended.stderr);
}

/// What fish offers behind a beginning.
fn fish_offers(script: &str, beginning: &str) -> Option<String> {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("a-file"), "").expect("written");
    let ask = "source $argv[1]; complete -C \"$argv[2]\" | string split -f1 \\t";
    let output = std::process::Command::new("fish")
        .args(["--no-config", "-c", ask, script, beginning])
        .env("HOME", directory.path())
        .current_dir(directory.path())
        .output();
    match output {
        Ok(output) => {
            assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{beginning}");
            let offered = String::from_utf8_lossy(&output.stdout);
            Some(offered.lines().collect::<Vec<_>>().join(" "))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => panic!("fish runs: {error}"),
    }
}

#[tokio::test]
async fn fish_completes_what_stands_by_its_place_and_files_only_where_one_is_meant() {
    let text = completions("fish").await;
    // What fish is told; it is asked as well where it is there.
    let of_list = "complete -c stockctl -n \"__fish_stockctl_using_subcommand dlq; and __fish_seen_subcommand_from list\" -f -a \"orders_dlq vendor_sync_dlq webhooks_dlq\"\n";
    assert!(text.contains(of_list), "{text}");
    let (_directory, script) = written(&text);
    for (beginning, expected) in [
        (
            "stockctl dlq list ",
            "orders_dlq vendor_sync_dlq webhooks_dlq",
        ),
        ("stockctl completions ", "bash elvish fish powershell zsh"),
        ("stockctl dlq re", "replay"),
        (
            "stockctl orders list --status ",
            "cancelled confirmed failed pending rejected",
        ),
        (
            "stockctl keys create till --scope ",
            "admin orders:read orders:write stock:write",
        ),
        ("stockctl orders show ", ""),
        ("stockctl orders show --url ", ""),
        ("stockctl serve ", ""),
        ("stockctl serve --config ", "a-file"),
        ("stockctl man ", "a-file"),
    ] {
        let Some(offered) = fish_offers(&script, beginning) else {
            use std::io::Write;
            let told = writeln!(std::io::stderr(), "fish is not installed: it was not asked");
            told.expect("written");
            return;
        };
        let mut offered: Vec<&str> = offered.split_whitespace().collect();
        offered.sort_unstable();
        assert_eq!(offered.join(" "), expected, "{beginning}");
    }
}

async fn completions(shell: &str) -> String {
    let ended = Process::run(&["completions", shell]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    ended.stdout
}

#[tokio::test]
async fn each_subcommand_has_a_man_page() {
    let main = Process::run(&["man"]).await;
    assert_eq!((main.code, main.stderr.as_str()), (Some(0), ""));
    assert!(main.stdout.contains("stockctl\\-dlq(1)"), "{}", main.stdout);

    let directory = tempfile::tempdir().expect("a directory");
    let pages = directory.path().join("share/man1");
    let into = pages.to_str().expect("UTF-8");
    let ended = Process::run(&["man", into]).await;
    let silent = (ended.stdout.as_str(), ended.stderr.as_str());
    assert_eq!((ended.code, silent), (Some(0), ("", "")));
    let written = std::fs::read_to_string(pages.join("stockctl.1")).expect("readable");
    assert_eq!(written.trim_end(), main.stdout.trim_end());
    for name in ["stockctl-up", "stockctl-dlq", "stockctl-dlq-replay"] {
        let page = std::fs::read_to_string(pages.join(format!("{name}.1"))).expect("readable");
        let title = format!(".TH {name} 1 2026-11-26 \"stockctl ");
        assert!(page.contains(&title), "{name}: {page}");
        for section in ["\"EXIT STATUS\"", "ENVIRONMENT", "FILES"] {
            assert!(page.contains(&format!("\n.SH {section}\n")), "{page}");
        }
    }

    let file = pages.join("stockctl.1");
    let ended = Process::run(&["man", file.to_str().expect("UTF-8")]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
    let says = "error: the man pages cannot be written into ";
    assert!(ended.stderr.starts_with(says), "{}", ended.stderr);
}

#[tokio::test]
async fn a_wrong_command_line_ends_with_2() {
    for arguments in [
        &[][..],
        &["nothing"],
        &["serve", "--nothing"],
        &["sync", "--json"],
        &["sync", "--once", "--vendor"],
        &["work", "--queue", "nothing"],
        &["audit", "--watch", "0"],
        &["up", "--listen", "nowhere"],
        &["up", "--servers-only", "--listen", "127.0.0.1:0"],
        &["orders", "show", "nonsense"],
        &["orders", "list", "--status", "lost"],
        &["keys", "create", "till", "--scope", "orders"],
    ] {
        let ended = Process::run(arguments).await;
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
        assert_eq!(ended.stdout, "", "{arguments:?}");
        assert!(ended.stderr.contains("--help"), "{arguments:?}: {ended:?}");
    }
    for (arguments, said) in [
        (
            &["orders", "cancel", "nonsense"][..],
            "'nonsense' for '<ID>': it must be a UUID",
        ),
        (&["dlq", "list", "--order", "nonsense"], "it must be a UUID"),
        (
            &["orders", "list", "--status", "lost"],
            "[possible values: pending, confirmed, rejected, failed, cancelled]",
        ),
    ] {
        let ended = Process::run(arguments).await;
        assert!(ended.stderr.contains(said), "{arguments:?}: {ended:?}");
    }
}

#[tokio::test]
async fn a_bad_configuration_ends_with_3_and_names_the_key_the_problem_and_the_file() {
    let (_directory, file) = written(&format!(
        "[http]\nlisten = \"0.0.0.0:8080\"\n[database]\nurl = \"postgres://u:{SECRET}@h/d\"\npool_sizes = 3\n\
         [rabbitmq]\nurl = \"amqps://u:{SECRET}@h\"\n[orders]\nretries_max = -1\n[sync]\nschedule = \"soon\"\n\
         [vendors.vendorA]\ndatabase_url = \"mysql://u:{SECRET}@h/d\"\n"
    ));
    for command in ["serve", "sync", "work", "migrate"] {
        let ended = Process::run(&["--config", &file, command]).await;
        assert_eq!(ended.code, Some(3), "{command}: {ended:?}");
        assert!(!ended.stderr.contains(SECRET), "{ended:?}");
        if command == "serve" {
            insta::assert_snapshot!(ended.stderr.replace(&file, "FILE"), @r#"
            error: the configuration will not do:
              http.listen (FILE, line 2): 0.0.0.0:8080 can be reached from other machines, and without API keys whoever reaches it could order, cancel and change stock; set http.require_keys = true and make keys with `stockctl keys create`, or listen on a loopback address such as 127.0.0.1:8080
              rabbitmq.url (FILE, line 7): amqps:// is not supported yet, and connecting without encryption instead would send the password in the clear: use amqp:// on a network that is trusted
              orders.retries_max (FILE, line 9): it must be a whole number from 0 to 20, not -1
              sync.schedule (FILE, line 11): "soon" is not a cron expression of six fields, the seconds first, such as "*/30 * * * * *": The 'Seconds' field does not support using names. 'soon' specified.
              vendors.vendorA.database_url (FILE, line 13): it must begin with postgres:// or postgresql://
              vendors.vendorA.api_url: it is required and not set; set it in FILE, or set STOCKCTL__VENDORS__VENDORA__API_URL
              database.pool_sizes (FILE, line 5): there is no such key; the nearest one is database.pool_size
            "#);
        }
    }
    let ended = Process::run(&["--config", "/nowhere/stockctl.toml", "migrate"]).await;
    assert_eq!(ended.code, Some(3));
    insta::assert_snapshot!(ended.stderr, @"error: the configuration file /nowhere/stockctl.toml (named by --config) cannot be read: No such file or directory (os error 2)");
    let ended = Process::run(&["migrate"]).await;
    assert_eq!(ended.code, Some(3));
    insta::assert_snapshot!(ended.stderr, @"
    error: the configuration will not do:
      database.url: it is required and not set; no file was found, so name one with --config, or set STOCKCTL__DATABASE__URL
      rabbitmq.url: it is required and not set; no file was found, so name one with --config, or set STOCKCTL__RABBITMQ__URL
      vendors: at least one vendor is required; add a section [vendors.<id>] with database_url and api_url
    ");
}

#[tokio::test]
async fn a_variable_is_named_when_its_value_will_not_do() {
    let (_directory, file) = nowhere();
    let variables = [
        ("STOCKCTL_CONFIG", file.as_str()),
        ("STOCKCTL__ORDERS__RETRIES_MAX", "many"),
    ];
    let ended = Process::start(&["migrate"], &variables).ended().await;
    assert_eq!(ended.code, Some(3));
    insta::assert_snapshot!(ended.stderr, @r#"
    error: the configuration will not do:
      orders.retries_max (STOCKCTL__ORDERS__RETRIES_MAX): it must be a whole number from 0 to 20, not "many"
    "#);
}

#[tokio::test]
async fn an_unknown_vendor_ends_with_3_and_names_those_there_are() {
    let (_directory, file) = nowhere();
    let ended = Process::run(&["--config", &file, "sync", "--once", "--vendor", "vendora"]).await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    insta::assert_snapshot!(ended.stderr, @r#"error: no vendor "vendora" is configured; there are: vendorA"#);
}

#[tokio::test]
async fn what_runs_once_ends_with_4_when_a_server_cannot_be_reached_and_says_which() {
    let (_directory, file) = nowhere();
    let mut texts = String::new();
    for arguments in [
        &["migrate"][..],
        &["migrate", "--vendors"],
        &["sync", "--once"],
        &["dlq", "list", "orders_dlq"],
        &["dlq", "replay", "orders_dlq", "--all"],
    ] {
        let ended = Process::run(&[&["--config", &file], arguments].concat()).await;
        assert_eq!(ended.code, Some(4), "{ended:?}");
        assert_eq!(ended.stdout, "");
        assert!(!ended.stderr.contains(SECRET), "{ended:?}");
        texts.push_str(&ended.stderr);
    }
    insta::assert_snapshot!(texts, @r#"
    error: ordersdb: PostgreSQL at 127.0.0.1:1/ordersdb cannot be reached: error connecting to server: Connection refused (os error 111)
    error: ordersdb: PostgreSQL at 127.0.0.1:1/ordersdb cannot be reached: error connecting to server: Connection refused (os error 111)
    error: PostgreSQL at 127.0.0.1:1/ordersdb cannot be reached: error connecting to server: Connection refused (os error 111)
    error: RabbitMQ at 127.0.0.1:2 cannot be reached: cannot connect: Connection refused (os error 111); check that it runs and rabbitmq.url
    error: PostgreSQL at 127.0.0.1:1/ordersdb cannot be reached: error connecting to server: Connection refused (os error 111)
    "#);
}

#[tokio::test]
async fn what_runs_on_says_which_server_it_cannot_reach_keeps_trying_and_ends_cleanly() {
    let (_directory, file) = nowhere();
    let postgresql = "PostgreSQL at 127.0.0.1:1/ordersdb cannot be reached: error connecting to server: Connection refused";
    for (command, said) in [
        ("serve", [postgresql, "127.0.0.1:2"]),
        ("work", [postgresql, postgresql]),
        ("sync", [postgresql, postgresql]),
    ] {
        let mut process = Process::start(
            &["--config", &file, command],
            &[("STOCKCTL__LOG__LEVEL", "debug")],
        );
        for text in said {
            process.writes(text).await;
        }
        assert!(process.is_running(), "{command}");
        process.signal(Signal::SIGTERM);
        let ended = process.ended().await;
        assert_eq!(ended.code, Some(0), "{command}: {ended:?}");
        assert!(!ended.stderr.contains(SECRET), "{ended:?}");
        assert_eq!(ended.stdout, "", "{command}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_all_the_time_is_logged_once_a_second() {
    let (_directory, file) = nowhere();
    let process = Process::start(&["--config", &file, "serve"], &[]);
    let log = |written: &str| -> Vec<serde_json::Value> {
        written
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    };
    let written = process.writes("\"serving\"").await;
    let address = log(&written)
        .iter()
        .find_map(|line| {
            Some(line["address"].as_str()?.to_owned()).filter(|_| line["message"] == "serving")
        })
        .expect("it says where it serves");
    let begun = std::time::Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = KeepAlive::new(&address);
        clients.spawn(async move {
            for _ in 0..25 {
                let body = r#"{"productId": "p1", "quantity": 1}"#;
                let answer = client
                    .send(hyper::Method::POST, "/orders", None, body)
                    .await
                    .expect("an answer");
                assert_eq!(answer.status, 503, "{answer:?}");
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.expect("no panic");
    }
    let seconds = begun.elapsed().as_secs();
    process.signal(Signal::SIGTERM);
    let ended = process.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let said: Vec<u64> = log(&ended.stderr)
        .iter()
        .filter_map(|line| line["requests"].as_u64())
        .collect();
    assert!(!said.is_empty(), "{ended:?}");
    // At least a second lies between two.
    assert!(said.len() as u64 <= seconds + 1, "{said:?} in {seconds} s");
    assert!(said.iter().sum::<u64>() <= 200, "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_processes_start_working_when_the_schema_appears() {
    let mut shop = Shop::with(ShopOptions {
        config: "[orders]\nretry_delay_ms = 1000\nretries_max = 20\n".into(),
        ..ShopOptions::default()
    })
    .await;
    let empty = Servers::get().await.create_empty_database().await;
    let url = shop.own_database_url().to_owned();
    shop.reconfigure(|text| text.replace(&format!("{url:?}"), &format!("{empty:?}")));
    let _api = (shop.serve().await, shop.serve_vendors());
    let processes = [
        shop.start(&["sync"]),
        shop.start(&["work", "--queue", "orders"]),
        shop.start(&["work", "--queue", "vendor-sync"]),
    ];
    for process in &processes {
        process.writes("migrations; run `stockctl migrate`").await;
    }
    let ended = shop.run(&["migrate"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let id = shop.order(&[("p2", 18)]).await;
    let order = shop.order_told(&id).await;
    assert_eq!(order["status"], "confirmed");
    for process in &processes {
        process.signal(Signal::SIGINT);
    }
    for process in processes {
        let ended = process.ended().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_ends_with_4() {
    let shop = Shop::new().await;
    // The harness itself listens there.
    let ended = shop.run(&["serve"]).await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    let address = shop.url.replace("http://", "");
    insta::assert_snapshot!(ended.stderr.replace(&address, "ADDRESS"), @"error: cannot listen on ADDRESS (http.listen): Address already in use (os error 98)");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_printed_for_people_and_for_programs() {
    let shop = Shop::new().await;
    let mut text = String::new();
    for arguments in [&["sync", "--once"][..], &["sync", "--once", "--json"]] {
        let ended = shop.run(arguments).await;
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
        // The vendors are synced side by side, and reported as they are done.
        let mut lines: Vec<&str> = ended.stdout.lines().collect();
        lines.sort_unstable();
        text.push_str(&format!("{}\n", lines.join("\n")));
    }
    insta::assert_snapshot!(text, @r#"
    vendorA: 2 products, 2 written, 0 updates found applied
    vendorB: 2 products, 2 written, 0 updates found applied
    {"outcome":"done","products":2,"read":0,"skipped":0,"updatesClosed":0,"vendorId":"vendorA","written":0}
    {"outcome":"done","products":2,"read":0,"skipped":0,"updatesClosed":0,"vendorId":"vendorB","written":0}
    "#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_before_the_migration_says_what_to_run() {
    let mut shop = Shop::new().await;
    let empty = Servers::get().await.create_empty_database().await;
    let url = shop.own_database_url().to_owned();
    shop.reconfigure(|text| text.replace(&format!("{url:?}"), &format!("{empty:?}")));
    let ended = shop.run(&["sync", "--once"]).await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(ended.stderr.contains("run `stockctl migrate`"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_password_is_written_even_when_everything_is_logged() {
    let shop = Shop::new().await;
    let servers = Servers::get().await;
    let passwords: Vec<String> = [shop.own_database_url(), &servers.amqp_url]
        .iter()
        .filter_map(|url| url::Url::parse(url).ok()?.password().map(str::to_owned))
        .collect();
    assert_eq!(passwords.len(), 2, "both servers ask for one");
    let file = shop.config_file.to_str().expect("UTF-8");
    let _api = (shop.serve().await, shop.serve_vendors());
    let processes = ["sync", "work"].map(|command| {
        Process::start(
            &["--config", file, command],
            &[("STOCKCTL__LOG__LEVEL", "trace")],
        )
    });
    let id = shop.order(&[("p2", 18)]).await;
    shop.order_told(&id).await;
    for process in processes {
        process.signal(Signal::SIGTERM);
        let ended = process.ended().await;
        assert_eq!(ended.code, Some(0));
        assert!(ended.stderr.contains("TRACE"), "everything is logged");
        for password in &passwords {
            assert!(!ended.stderr.contains(password.as_str()));
        }
    }
}
