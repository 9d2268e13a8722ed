//! The rooms and their directions, as the code map in `src/lib.rs` draws them.

use std::fs;
use std::path::{Path, PathBuf};

/// Each room, and the rooms of this crate that it may name.
const MAY_NAME: [(&str, &[&str]); 24] = [
    ("domain", &[]),
    ("metrics", &[]),
    ("pg", &["metrics"]),
    ("limit", &[]),
    ("outgoing", &[]),
    ("shutdown", &[]),
    ("supervisor", &["shutdown"]),
    ("telemetry", &["metrics"]),
    ("traces", &["domain", "metrics", "outgoing"]),
    ("config", &["limit", "telemetry"]),
    ("fault_injection", &[]),
    ("mq", &["fault_injection", "metrics"]),
    ("local", &[]),
    ("bench", &[]),
    ("client", &["outgoing"]),
    ("db", &["domain", "pg"]),
    ("vendors", &["domain", "outgoing", "pg", "traces"]),
    ("receivers", &["domain", "outgoing"]),
    (
        "app",
        &[
            "db",
            "domain",
            "fault_injection",
            "metrics",
            "mq",
            "pg",
            "receivers",
            "shutdown",
            "supervisor",
            "traces",
            "vendors",
        ],
    ),
    (
        "http",
        &[
            "app", "db", "domain", "limit", "metrics", "mq", "traces", "vendors",
        ],
    ),
    (
        "consumers",
        &[
            "app",
            "db",
            "domain",
            "fault_injection",
            "limit",
            "metrics",
            "mq",
            "shutdown",
            "supervisor",
            "traces",
        ],
    ),
    (
        "schedule",
        &[
            "app",
            "db",
            "domain",
            "limit",
            "metrics",
            "shutdown",
            "supervisor",
        ],
    ),
    (
        "commands",
        &[
            "app",
            "bench",
            "client",
            "config",
            "consumers",
            "db",
            "domain",
            "http",
            "limit",
            "local",
            "metrics",
            "mq",
            "pg",
            "receivers",
            "schedule",
            "shutdown",
            "supervisor",
            "telemetry",
            "traces",
            "vendors",
        ],
    ),
    ("cli", &["commands"]),
];

/// Crates that only one room names.
const KEPT_IN: [(&str, &[&str]); 12] = [
    // telemetry keeps out of the log what amiquip writes there of the password.
    ("amiquip", &["mq", "telemetry"]),
    ("actix_web", &["http"]),
    ("listenfd", &["http"]),
    ("socket2", &["http"]),
    (
        "reqwest",
        &["client", "outgoing", "receivers", "traces", "vendors"],
    ),
    ("httparse", &["bench"]),
    ("tokio_postgres", &["pg"]),
    ("clap", &["cli", "commands"]),
    ("clap_complete", &["cli", "commands"]),
    ("clap_mangen", &["commands"]),
    ("nix", &["commands", "local"]),
    ("prometheus", &["metrics"]),
];

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The files below `src`, each with its room and its code without comments.
fn sources() -> Vec<(PathBuf, String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    files
        .into_iter()
        .map(|path| {
            let inside = path.strip_prefix(&src).expect("below src").to_path_buf();
            let first = inside
                .components()
                .next()
                .expect("a name")
                .as_os_str()
                .to_string_lossy();
            let room = first.trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).expect("readable");
            let code: Vec<&str> = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .collect();
            (inside, room, code.join("\n"))
        })
        .collect()
}

/// The names that follow `crate::`, also in a group.
fn rooms_named(code: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let names = match rest.strip_prefix('{') {
            // Only the first names of a group are rooms; what is inside a room's own braces is not.
            Some(group) => {
                let mut depth = 0;
                let mut names = vec![String::new()];
                for character in group.chars() {
                    match character {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => names.push(String::new()),
                        other if depth == 0 => names.last_mut().expect("one").push(other),
                        _ => {}
                    }
                }
                names
            }
            None => vec![rest.to_owned()],
        };
        for name in names {
            let name: String = name
                .trim()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            if !name.is_empty() {
                rooms.push(name);
            }
        }
    }
    rooms
}

#[test]
fn imports_go_down_only() {
    let mut wrong = Vec::new();
    for (file, room, code) in sources() {
        if room == "main" || room == "lib" {
            continue;
        }
        let (_, allowed) = MAY_NAME
            .iter()
            .find(|(name, _)| *name == room)
            .unwrap_or_else(|| panic!("{} is in no room of the map", file.display()));
        for named in rooms_named(&code) {
            if named != room && !allowed.contains(&named.as_str()) {
                wrong.push(format!("{} names {named}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_library_stays_in_its_room() {
    let mut wrong = Vec::new();
    for (file, room, code) in sources() {
        for (library, rooms) in KEPT_IN {
            let names_it = code.match_indices(&format!("{library}::")).any(|(at, _)| {
                !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_')
            });
            if names_it && room != "main" && !rooms.contains(&room.as_str()) {
                wrong.push(format!("{} names {library}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_rules_are_pure() {
    for (file, room, code) in sources() {
        if room == "domain" {
            for impure in [
                "tokio", "diesel", "actix", "async fn", "Utc::now", "std::fs", "std::net", "now_v7",
            ] {
                assert!(!code.contains(impure), "{} names {impure}", file.display());
            }
        }
    }
}

#[test]
fn only_use_cases_open_transactions() {
    for (file, room, code) in sources() {
        if room != "app" {
            assert!(
                !code.contains(".transaction("),
                "{} opens a transaction",
                file.display()
            );
        }
    }
}
