//! The Debian package, as dpkg installs, upgrades and removes it.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::binary;
use crate::systemd::{files_below, make, run};

/// The package of the binary under test, and the files that it was made of.
struct Package {
    directory: tempfile::TempDir,
}

impl Package {
    /// Makes it in a target directory of its own, so that a package of a release stays what it is.
    fn make() -> Self {
        let (found, text) = run("cargo", &["deb", "--version"]);
        assert!(
            found,
            "`make setup SETUP_DEB=yes` installs cargo-deb: {text}"
        );
        let directory = tempfile::tempdir().expect("a directory");
        let target = format!("CARGO_TARGET_DIR={}", directory.path().display());
        // cargo-deb's own gzip takes minutes for a program with debug information.
        let quick = "DEB_FLAGS=--fast -Z gzip --compress-system".to_owned();
        make("deb", &[target, quick]);
        Self { directory }
    }

    fn staged(&self) -> PathBuf {
        self.directory.path().join("release/deb-root")
    }

    fn file(&self) -> PathBuf {
        let made = self.directory.path().join("debian");
        let names = files_below(&made);
        assert_eq!(names.len(), 1, "{names:?}");
        made.join(&names[0])
    }

    /// What `dpkg-deb` says of it.
    fn tells(&self, option: &str, what: &str) -> String {
        let file = self.file();
        let (told, text) = run("dpkg-deb", &[option, file.to_str().expect("UTF-8"), what]);
        assert!(told, "{text}");
        text.trim().to_owned()
    }
}

/// Another root than this machine's, with a database of dpkg's own.
struct Root {
    directory: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Self { directory };
        for inside in ["etc", "var/lib/dpkg/info", "var/lib/dpkg/updates"] {
            std::fs::create_dir_all(root.path(inside)).expect("created");
        }
        for inside in ["var/lib/dpkg/status", "var/lib/dpkg/available", "owners"] {
            std::fs::write(root.path(inside), "").expect("written");
        }
        root
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.directory.path().join(inside)
    }

    fn text(&self, inside: &str) -> String {
        self.path(inside).to_str().expect("UTF-8").to_owned()
    }

    fn read(&self, inside: &str) -> String {
        std::fs::read_to_string(self.path(inside)).expect("readable")
    }

    /// Runs a program as root, or as somebody who is told that he is, and whose files' owners are kept in a file.
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let owners = self.text("owners");
        let (done, text) = if nix::unistd::geteuid().is_root() {
            run(program, arguments)
        } else {
            let told = ["-i", &owners, "-s", &owners, "--", program];
            run("fakeroot", &[&told[..], arguments].concat())
        };
        assert!(done, "{program} {arguments:?}: {text}");
        text
    }

    /// Its scripts run outside of the root, in which there is no shell; the packages that it depends on are not there either.
    fn dpkg(&self, action: &[&str]) -> String {
        let root = format!("--root={}", self.directory.path().display());
        let log = format!("--log={}", self.text("dpkg.log"));
        let options = [
            &root,
            &log,
            "--force-script-chrootless",
            "--force-depends",
            "--force-unsafe-io",
        ];
        self.run("dpkg", &[&options[..], action].concat())
    }

    /// Owner, group and mode of a file.
    fn owned(&self, inside: &str) -> String {
        let file = self.text(inside);
        let text = self.run("stat", &["-c", "%u:%g %a", &file]);
        text.trim().to_owned()
    }
}

/// The mode of a file, as `stat` writes it.
fn mode(file: &Path) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(file).expect("there").permissions().mode();
    format!("{:o}", mode & 0o7777)
}

#[test]
fn the_package_has_all_that_is_installed_and_says_what_it_is() {
    let package = Package::make();
    let version = concat!(env!("CARGO_PKG_VERSION"), "-1");
    assert_eq!(package.tells("--field", "Version"), version);
    let changelog = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/debian/changelog");
    let changelog = std::fs::read_to_string(changelog).expect("readable");
    assert!(
        changelog.starts_with(&format!("stockctl ({version}) ")),
        "the changelog begins with this version: {changelog}"
    );
    let depends = package.tells("--field", "Depends");
    for needed in ["libc6 (>= ", "libgcc-s1", "passwd"] {
        assert!(depends.contains(needed), "{depends}");
    }
    let conffiles = package.tells("--info", "conffiles");
    assert_eq!(conffiles, "/etc/stockctl/stockctl.toml");

    let root = Root::new();
    let file = package.file();
    let told = root.dpkg(&["--install", file.to_str().expect("UTF-8")]);
    assert!(
        told.contains("fill in /etc/stockctl/stockctl.toml"),
        "{told}"
    );
    let installed: BTreeSet<String> = files_below(root.directory.path())
        .into_iter()
        .filter(|file| file.starts_with("usr/") || file.starts_with("etc/stockctl"))
        .collect();
    let mut expected: BTreeSet<String> = files_below(&package.staged()).into_iter().collect();
    for file in &expected {
        assert_eq!(
            mode(&root.path(file)),
            mode(&package.staged().join(file)),
            "{file}"
        );
    }
    for file in ["changelog.Debian.gz", "copyright"] {
        expected.insert(format!("usr/share/doc/stockctl/{file}"));
    }
    assert_eq!(installed, expected);

    the_user_reads_the_configuration(&root);
    the_program_runs(&root);
    the_units_name_what_is_there(&root);
    the_readme_links_to_what_is_there(&root);
    it_is_upgraded_and_removed(&root, &file, &installed);
}

/// And nobody else, and owns nothing.
fn the_user_reads_the_configuration(root: &Root) {
    let passwd = root.read("etc/passwd");
    let user: Vec<&str> = passwd.trim().split(':').collect();
    assert_eq!((user[0], user[6]), ("stockctl", "/usr/sbin/nologin"));
    let group = root.read("etc/group");
    let group: Vec<&str> = group.trim().split(':').collect();
    assert_eq!(group[0], "stockctl");
    let configuration = root.owned("etc/stockctl/stockctl.toml");
    assert_eq!(configuration, format!("0:{} 640", group[2]));
    assert_eq!(root.owned("usr/bin/stockctl"), "0:0 755");
    assert_eq!(root.owned("etc/stockctl"), "0:0 755");
    assert!(!root.path("etc/systemd").exists(), "nothing is enabled");
}

/// What is installed is the binary under test, and its configuration has to be filled in.
fn the_program_runs(root: &Root) {
    let program = root.text("usr/bin/stockctl");
    let version = run(&program, &["--version"]);
    let tested = run(binary().to_str().expect("UTF-8"), &["--version"]);
    assert_eq!(version, tested);
    let configuration = root.text("etc/stockctl/stockctl.toml");
    let output = Command::new(program)
        .args(["--config", &configuration, "config", "check"])
        .env_clear()
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    for missing in ["database.url: ", "rabbitmq.url: ", "vendors: "] {
        assert!(text.contains(missing), "{text}");
    }
    assert!(text.contains(&configuration), "where to set it: {text}");
}

/// The files that it shows and names, but for those that only who builds it has.
fn the_readme_links_to_what_is_there(root: &Root) {
    let readme = root.read("usr/share/doc/stockctl/README.md");
    let linked: BTreeSet<&str> = readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|link| !link.starts_with("https://") && !link.starts_with('#'))
        .collect();
    for link in &linked {
        let there = root.path("usr/share/doc/stockctl").join(link).exists();
        assert!(there || link.starts_with("src/"), "{link} is not there");
    }
    assert!(linked.contains("screenshots/overview.png"), "{linked:?}");
}

/// The programs and files that they name: ours are in the package, the system's on this machine.
fn the_units_name_what_is_there(root: &Root) {
    let units = root.path("usr/lib/systemd/system");
    let mut named = BTreeSet::new();
    for unit in files_below(&units) {
        let text = std::fs::read_to_string(units.join(unit)).expect("readable");
        let documentation = text
            .lines()
            .filter(|line| line.starts_with("Documentation="));
        for page in documentation.flat_map(|line| line["Documentation=".len()..].split(' ')) {
            let file = match (page.strip_prefix("man:"), page.strip_prefix("file:/")) {
                (Some(page), _) => {
                    format!("usr/share/man/man1/{}.gz", page.replace("(1)", ".1"))
                }
                (_, Some(file)) => file.to_owned(),
                _ => panic!("{page} is neither"),
            };
            assert!(root.path(&file).exists(), "{file}");
        }
        assert!(text.contains("\nDocumentation="), "{text}");
        let commands = text.lines().filter(|line| line.starts_with("Exec"));
        for (_, command) in commands.filter_map(|line| line.split_once('=')) {
            let paths = command.split(' ').filter(|word| word.starts_with('/'));
            named.extend(paths.map(str::to_owned));
        }
    }
    for path in &named {
        let there = root.path(&path[1..]).exists()
            || !path.contains("stockctl") && Path::new(path).exists();
        assert!(there, "{path}");
    }
    let named: Vec<&str> = named.iter().map(String::as_str).collect();
    assert_eq!(
        named,
        [
            "/bin/kill",
            "/etc/stockctl/stockctl.toml",
            "/usr/bin/stockctl"
        ]
    );

    if !Path::new("/usr/bin/systemd-analyze").exists() {
        let told = writeln!(
            std::io::stderr(),
            "systemd-analyze is not installed: the package's units were not verified"
        );
        told.expect("written");
        return;
    }
    // In the root as it would be with the system around it.
    let system = root.text("usr/lib/systemd/system");
    root.run("cp", &["-an", "/usr/lib/systemd/system/.", &system]);
    root.run("install", &["-D", "/bin/kill", &root.text("bin/kill")]);
    let (valid, text) = run(
        "systemd-analyze",
        &[
            "verify",
            "--man=no",
            &format!("--root={}", root.directory.path().display()),
            "stockctl.target",
            "stockctl-serve.socket",
            "stockctl-serve.service",
            "stockctl-sync.service",
            "stockctl-work@orders.service",
            "stockctl-work@vendor-sync.service",
            "stockctl-work@webhooks.service",
            "stockctl-audit.timer",
            "stockctl-audit.service",
        ],
    );
    assert!(valid && !text.contains("stockctl"), "{text}");
}

/// What the operator has written stays until the package is purged, and what he has enabled is disabled with its removal.
fn it_is_upgraded_and_removed(root: &Root, package: &Path, installed: &BTreeSet<String>) {
    let own = "etc/stockctl/stockctl.toml";
    let before = root.owned(own);
    std::fs::write(root.path(own), "# mine").expect("written");
    let told = root.dpkg(&["--install", package.to_str().expect("UTF-8")]);
    assert!(told.contains("whatever runs is still version"), "{told}");
    assert_eq!(
        (root.read(own).as_str(), root.owned(own)),
        ("# mine", before)
    );

    let enabled = "etc/systemd/system/multi-user.target.wants/stockctl.target";
    let systemd = Path::new("/usr/bin/systemctl").exists();
    if systemd {
        let other = format!("--root={}", root.directory.path().display());
        root.run(
            "systemctl",
            &[
                &other,
                "enable",
                "stockctl.target",
                "stockctl-serve.socket",
                "stockctl-audit.timer",
            ],
        );
        assert!(root.path(enabled).is_symlink());
    }
    root.dpkg(&["--remove", "stockctl"]);
    let left = files_below(root.directory.path());
    let ours: Vec<&String> = left
        .iter()
        .filter(|file| installed.contains(*file))
        .collect();
    assert_eq!(ours, [own]);
    assert!(
        !left.iter().any(|file| file.starts_with("etc/systemd")),
        "{left:?}"
    );
    root.dpkg(&["--purge", "stockctl"]);
    assert!(!root.path("etc/stockctl").exists());
    assert!(
        root.read("etc/passwd").starts_with("stockctl:"),
        "its number stays taken"
    );
}
