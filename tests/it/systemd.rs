//! The units, as systemd reads them, and what the processes tell it.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use tokio::net::UnixDatagram;

use crate::support::{DEADLINE, Process, binary};

/// Runs a program in the repository, and returns whether it succeeded and what it wrote.
pub(crate) fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // A `make` above this one must not tell that below what to do.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .output()
        .unwrap_or_else(|error| panic!("{program} runs: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// `make install`, or `uninstall`, of the binary under test.
pub(crate) fn make(target: &str, variables: &[String]) {
    let binary = format!("BINARY={}", binary().display());
    let mut arguments = vec!["-s", target, &binary];
    arguments.extend(variables.iter().map(String::as_str));
    let (done, text) = run("make", &arguments);
    assert!(done, "{text}");
}

/// The files below a directory, by their path in it, sorted.
pub(crate) fn files_below(directory: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_path_buf()];
    while let Some(next) = directories.pop() {
        for entry in std::fs::read_dir(next).expect("readable") {
            let path = entry.expect("readable").path();
            match path.is_dir() {
                true => directories.push(path),
                false => files.push(path),
            }
        }
    }
    let mut names: Vec<String> = files
        .iter()
        .map(|file| file.strip_prefix(directory).expect("below"))
        .map(|inside| inside.display().to_string())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_installed_runs_and_is_removed_whole_but_for_the_configuration() {
    let root = tempfile::tempdir().expect("a directory");
    let into = [
        format!("DESTDIR={}", root.path().display()),
        "PREFIX=/usr".to_owned(),
    ];
    make("install", &into);
    insta::assert_snapshot!(files_below(root.path()).join("\n"), @"
    etc/stockctl/stockctl.toml
    usr/bin/stockctl
    usr/lib/systemd/system/stockctl-audit.service
    usr/lib/systemd/system/stockctl-audit.timer
    usr/lib/systemd/system/stockctl-serve.service
    usr/lib/systemd/system/stockctl-serve.socket
    usr/lib/systemd/system/stockctl-sync.service
    usr/lib/systemd/system/stockctl-work@.service
    usr/lib/systemd/system/stockctl.target
    usr/lib/sysusers.d/stockctl.conf
    usr/lib/tmpfiles.d/stockctl.conf
    usr/share/bash-completion/completions/stockctl
    usr/share/doc/stockctl/README.md
    usr/share/doc/stockctl/alerts.yml
    usr/share/doc/stockctl/default.toml
    usr/share/doc/stockctl/grafana-dashboard.json
    usr/share/doc/stockctl/screenshots/dead-letters.png
    usr/share/doc/stockctl/screenshots/overview.png
    usr/share/fish/vendor_completions.d/stockctl.fish
    usr/share/man/man1/stockctl-audit.1
    usr/share/man/man1/stockctl-bench.1
    usr/share/man/man1/stockctl-completions.1
    usr/share/man/man1/stockctl-config-check.1
    usr/share/man/man1/stockctl-config-show.1
    usr/share/man/man1/stockctl-config.1
    usr/share/man/man1/stockctl-dlq-drop.1
    usr/share/man/man1/stockctl-dlq-list.1
    usr/share/man/man1/stockctl-dlq-replay.1
    usr/share/man/man1/stockctl-dlq-show.1
    usr/share/man/man1/stockctl-dlq.1
    usr/share/man/man1/stockctl-keys-create.1
    usr/share/man/man1/stockctl-keys-expire.1
    usr/share/man/man1/stockctl-keys-list.1
    usr/share/man/man1/stockctl-keys-revoke.1
    usr/share/man/man1/stockctl-keys-rotate.1
    usr/share/man/man1/stockctl-keys.1
    usr/share/man/man1/stockctl-man.1
    usr/share/man/man1/stockctl-migrate.1
    usr/share/man/man1/stockctl-openapi.1
    usr/share/man/man1/stockctl-orders-cancel.1
    usr/share/man/man1/stockctl-orders-list.1
    usr/share/man/man1/stockctl-orders-place.1
    usr/share/man/man1/stockctl-orders-show.1
    usr/share/man/man1/stockctl-orders.1
    usr/share/man/man1/stockctl-products-list.1
    usr/share/man/man1/stockctl-products-show.1
    usr/share/man/man1/stockctl-products.1
    usr/share/man/man1/stockctl-serve.1
    usr/share/man/man1/stockctl-status.1
    usr/share/man/man1/stockctl-sync.1
    usr/share/man/man1/stockctl-up.1
    usr/share/man/man1/stockctl-work.1
    usr/share/man/man1/stockctl.1
    usr/share/zsh/site-functions/_stockctl
    ");
    let installed = root.path().join("usr/bin/stockctl");
    let (runs, version) = run(installed.to_str().expect("UTF-8"), &["--version"]);
    assert!(runs && version.starts_with("stockctl "), "{version}");
    let unit = std::fs::read_to_string(
        root.path()
            .join("usr/lib/systemd/system/stockctl-sync.service"),
    )
    .expect("readable");
    assert!(
        unit.contains("ExecStart=/usr/bin/stockctl --config /etc/stockctl/stockctl.toml sync\n"),
        "DESTDIR is not where it runs: {unit}"
    );
    let read = |inside: &str| std::fs::read_to_string(root.path().join(inside)).expect("readable");
    let bash = read("usr/share/bash-completion/completions/stockctl");
    assert!(
        bash.contains("complete -F _stockctl"),
        "what bash reads: {bash}"
    );
    let zsh = read("usr/share/zsh/site-functions/_stockctl");
    assert!(
        zsh.starts_with("#compdef stockctl\n"),
        "what zsh reads: {zsh}"
    );
    let fish = read("usr/share/fish/vendor_completions.d/stockctl.fish");
    assert!(fish.contains("complete -c stockctl "), "{fish}");

    let own = root.path().join("etc/stockctl/stockctl.toml");
    std::fs::write(&own, "# mine").expect("written");
    make("install", &into);
    let kept = std::fs::read_to_string(&own).expect("readable");
    assert_eq!(kept, "# mine", "a second install keeps it");
    make("uninstall", &into);
    assert_eq!(files_below(root.path()), ["etc/stockctl/stockctl.toml"]);
}

#[test]
fn the_units_are_valid_and_sandboxed() {
    if !Path::new("/usr/bin/systemd-analyze").exists() {
        // Its own judgement of its own files; there is none where systemd is not, and the log says so.
        use std::io::Write;
        let told = writeln!(
            std::io::stderr(),
            "systemd-analyze is not installed: the units were not verified"
        );
        told.expect("written");
        return;
    }
    let root = tempfile::tempdir().expect("a directory");
    let prefix = root.path().display();
    make(
        "install",
        &[
            format!("PREFIX={prefix}"),
            format!("SYSCONFDIR={prefix}/etc"),
        ],
    );
    let unit = |name: &str| {
        let path: PathBuf = root.path().join("lib/systemd/system").join(name);
        path.to_str().expect("UTF-8").to_owned()
    };
    let units = [
        "stockctl.target",
        "stockctl-serve.socket",
        "stockctl-serve.service",
        "stockctl-sync.service",
        "stockctl-work@orders.service",
        "stockctl-work@vendor-sync.service",
        "stockctl-work@webhooks.service",
        "stockctl-audit.timer",
        "stockctl-audit.service",
    ]
    .map(unit);
    // The manual is installed elsewhere; the package has a test of that.
    let arguments: Vec<&str> = ["verify", "--man=no"]
        .into_iter()
        .chain(units.iter().map(String::as_str))
        .collect();
    let (valid, text) = run("systemd-analyze", &arguments);
    let ours: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("stockctl"))
        .collect();
    assert!(valid && ours.is_empty(), "{text}");
    for name in [
        "stockctl-serve.service",
        "stockctl-sync.service",
        "stockctl-work@.service",
        "stockctl-audit.service",
    ] {
        // In tenths: 0.0 is the best, 10.0 the worst.
        let security = ["security", "--offline=yes", "--no-pager", "--threshold=20"];
        let file = unit(name);
        let (low, text) = run(
            "systemd-analyze",
            &[&security[..], &[file.as_str()]].concat(),
        );
        assert!(low, "{text}");
    }
}

/// Who started a process, and hears what it says.
struct Supervisor {
    socket: UnixDatagram,
    directory: tempfile::TempDir,
}

impl Supervisor {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("bound");
        Self { socket, directory }
    }

    /// Starts a process as systemd does, with a watchdog that wants to be fed within 400 ms.
    fn start(&self, arguments: &[&str]) -> Process {
        let notify = self.directory.path().join("notify");
        Process::start(
            arguments,
            &[
                ("NOTIFY_SOCKET", notify.to_str().expect("UTF-8")),
                ("WATCHDOG_USEC", "400000"),
            ],
        )
    }

    /// Waits for a message that begins so, and returns it.
    async fn hears(&self, beginning: &str) -> String {
        let mut buffer = [0; 4096];
        let mut others = Vec::new();
        let hearing = async {
            loop {
                let length = self.socket.recv(&mut buffer).await.expect("heard");
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if text.starts_with(beginning) {
                    return text;
                }
                others.push(text);
            }
        };
        let heard = tokio::time::timeout(DEADLINE, hearing).await;
        heard.unwrap_or_else(|_| panic!("{beginning:?} never came, but {others:?}"))
    }
}

/// A configuration in which nothing can be reached.
const NOWHERE: &str = "[http]\nlisten = \"127.0.0.1:0\"\n[database]\nurl = \"postgres://u@127.0.0.1:1/ordersdb\"\n\
    [rabbitmq]\nurl = \"amqp://u:p@127.0.0.1:2/%2f\"\n[vendors.vendorA]\n\
    database_url = \"postgres://u@127.0.0.1:3/vendoradb\"\napi_url = \"http://127.0.0.1:4/\"\n";

#[tokio::test]
async fn a_process_whose_stores_are_away_is_ready_feeds_its_watchdog_reloads_and_says_when_it_ends()
{
    for (arguments, status) in [
        (&["serve"][..], "READY=1\nSTATUS=serving on 127.0.0.1:"),
        (&["sync"], "STATUS=waiting: "),
        (&["work", "--queue", "orders"], "STATUS=waiting: "),
    ] {
        let supervisor = Supervisor::new();
        let file = supervisor.directory.path().join("stockctl.toml");
        std::fs::write(&file, NOWHERE).expect("written");
        let configured = ["--config", file.to_str().expect("UTF-8")];
        let mut process = supervisor.start(&[&configured[..], arguments].concat());
        if !status.starts_with("READY") {
            supervisor.hears("READY=1\nSTATUS=starting").await;
        }
        supervisor.hears(status).await;
        for _ in 0..3 {
            supervisor.hears("WATCHDOG=1").await;
        }

        std::fs::write(&file, format!("{NOWHERE}[log]\nlevel = \"loud\"\n")).expect("written");
        process.signal(Signal::SIGHUP);
        process.writes("the configuration was not reloaded").await;
        let changed = "[orders]\nbatch_max = 7\nprefetch = 9\n[sync]\nchunk_rows = 8\n[log]\nlevel = \"info,stockctl=debug\"\n";
        std::fs::write(&file, format!("{NOWHERE}{changed}")).expect("written");
        process.signal(Signal::SIGHUP);
        process
            .writes("\"changed\":\"log.level, orders.batch_max, sync.chunk_rows\"")
            .await;
        process.writes("other keys have changed, too").await;

        assert_eq!(process.terminate().await, Some(0));
        supervisor.hears("STOPPING=1").await;
    }
}

#[tokio::test]
async fn a_supervisor_that_is_not_there_is_no_reason_to_fail() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("stockctl.toml");
    std::fs::write(&file, NOWHERE).expect("written");
    let nobody = directory.path().join("nobody");
    let mut process = Process::start(
        &["--config", file.to_str().expect("UTF-8"), "sync"],
        &[("NOTIFY_SOCKET", nobody.to_str().expect("UTF-8"))],
    );
    process.writes("waiting: ").await;
    assert_eq!(process.terminate().await, Some(0));
}
