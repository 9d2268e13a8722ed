//! The private RabbitMQ: its node, the name registry it needs, its start and its stop.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::amqp;
use super::error::Error;
use super::files::{random_name, remove_if_there, write_private};
use super::home::{CHILD_POLL, Home, Kind, exit_status, wait_for_exit};
use super::ports;
use super::programs::Programs;

/// How the private RabbitMQ is called, and where it is.
pub(super) const KIND: Kind = Kind {
    program: "RabbitMQ",
    directory: "rabbitmq",
    system_user: "rabbitmq",
};

/// How messages name the registry, which is no server of its own for the caller.
const EPMD_PROGRAM: &str = "RabbitMQ's name registry (epmd)";

/// RabbitMQ 3.10 stops its applications in order on this.
pub(super) const STOP_SIGNAL: Signal = Signal::SIGTERM;

/// A start takes 4 to 9 seconds on two idle cores. Both may be busy: with a dozen tests beside it, one took over a minute.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// The name registry listens within milliseconds of its start.
const EPMD_READY_WITHIN: Duration = Duration::from_secs(10);

/// A stop takes about a second.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// A `rabbitmqctl` call takes about a second; it starts an Erlang of its own, and on a machine with ten times as much to do
/// as it has processors that was seen to take over 30.
const CTL_WITHIN: Duration = Duration::from_secs(90);

/// A port can be lost between its choice and the server's bind, but hardly thrice.
const PORT_TRIES: usize = 3;

/// The only user, an administrator; RabbitMQ's usual `guest` is not created beside it.
const USER: &str = "stockctl";

/// The directory of the node's database.
const DATABASE: &str = "mnesia";

/// For every Erlang node here, the tools' too: it listens on loopback only, and starts
/// no name registry, as that would be the machine's.
const ERLANG_ARGUMENTS: &str = "-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false";

/// Idle schedulers sleep at once; spinning takes a core from everybody else.
const NO_BUSY_WAITING: &str = "+sbwt none +sbwtdcpu none +sbwtdio none";

/// Each quorum queue counts itself for RabbitMQ's statistics, every 5 s by default, which takes a tenth of a millisecond
/// and more. The plugins that show them are off here, and what we ask a queue it answers when it is asked.
const SELDOM_COUNTED: &str = "-rabbit quorum_tick_interval 60000";

/// The private RabbitMQ of one data directory.
#[derive(Debug)]
pub(super) struct RabbitMq {
    home: Home,
    server: PathBuf,
    ctl: PathBuf,
    epmd: PathBuf,
    settings: Settings,
    children: Option<Children>,
}

#[derive(Debug)]
struct Children {
    epmd: Child,
    // The launching script turns into the node without a fork between them.
    node: Child,
}

#[derive(Debug, Serialize, Deserialize)]
struct Settings {
    /// The node's database can be used under this name only.
    node: String,
    password: String,
    /// Whether the node has been ready once, and so has its user and virtual host.
    complete: bool,
    #[serde(flatten)]
    ports: Ports,
}

#[derive(Debug, Serialize, Deserialize)]
struct Ports {
    amqp: u16,
    distribution: u16,
    epmd: u16,
}

impl Ports {
    fn choose() -> Result<Self, Error> {
        let [amqp, distribution, epmd] = ports::choose()?;
        Ok(Self {
            amqp,
            distribution,
            epmd,
        })
    }

    fn are_free(&self) -> bool {
        [self.amqp, self.distribution, self.epmd]
            .into_iter()
            .all(ports::is_free)
    }
}

impl RabbitMq {
    pub(super) fn open(home: Home, programs: &Programs) -> Result<Self, Error> {
        let settings = match home.load()? {
            Some(settings) => settings,
            None if home.path.join(DATABASE).exists() => {
                return Err(home.damaged("it is missing, and with it the node's name"));
            }
            None => {
                let settings = Settings {
                    node: format!("stockctl-{}@localhost", &random_name()?[..8]),
                    password: random_name()?,
                    complete: false,
                    ports: Ports::choose()?,
                };
                home.save(&settings)?;
                settings
            }
        };
        Ok(Self {
            home,
            server: programs.rabbitmq_server.clone(),
            ctl: programs.rabbitmqctl.clone(),
            epmd: programs.epmd.clone(),
            settings,
            children: None,
        })
    }

    pub(super) fn url(&self) -> String {
        let Settings {
            password, ports, ..
        } = &self.settings;
        format!("amqp://{USER}:{password}@127.0.0.1:{}/%2f", ports.amqp)
    }

    /// Starts the node, on its ports of last time if they are still free.
    pub(super) async fn start(&mut self, report: &(dyn Fn(&str) + Sync)) -> Result<(), Error> {
        self.home.begin_log()?;
        if !self.settings.complete {
            // A first start that was interrupted can leave a database without its user,
            // and no later start would create one.
            let database = self.home.path.join(DATABASE);
            remove_if_there(&database).map_err(Error::file("remove", &database))?;
        }
        let mut tries = 1;
        loop {
            if !self.settings.ports.are_free() {
                self.settings.ports = Ports::choose()?;
                self.home.save(&self.settings)?;
            }
            report(&format!(
                "starting RabbitMQ on port {} (a few seconds)",
                self.settings.ports.amqp
            ));
            match self.run().await {
                Ok(()) => break,
                // It is ended, so whoever has a port of it now took it away.
                Err(_) if tries < PORT_TRIES && !self.settings.ports.are_free() => tries += 1,
                Err(error) => return Err(error),
            }
        }
        if !self.settings.complete {
            self.settings.complete = true;
            self.home.save(&self.settings)?;
        }
        report("RabbitMQ is ready");
        Ok(())
    }

    /// Starts the node on the ports it has, and waits until one can log in.
    pub(super) async fn run(&mut self) -> Result<(), Error> {
        if self
            .children
            .as_mut()
            .is_some_and(|children| children.exit_status().is_none())
        {
            return Ok(());
        }
        // A node that was killed alone leaves its name registry, which holds the port.
        self.kill().await?;
        let ready = self.spawn_and_wait().await;
        if ready.is_err() {
            self.kill().await?;
        }
        ready
    }

    async fn spawn_and_wait(&mut self) -> Result<(), Error> {
        self.write_configuration()?;
        let epmd = self.start_epmd().await?;
        let mut command = self.command(&self.server);
        command
            // Erlang's runtime keeps arguments that it does not know.
            .args(["-stockctl", self.home.processes.mark()])
            // Lets the script become the node, instead of waiting beside it.
            .env("RUNNING_UNDER_SYSTEMD", "true");
        let node = self.home.spawn(command)?;
        let children = self.children.insert(Children { epmd, node });
        let deadline = Instant::now() + READY_WITHIN;
        let Settings {
            password, ports, ..
        } = &self.settings;
        loop {
            if let Some((program, status)) = children.exit_status() {
                return Err(self.home.exited(program, status));
            }
            if amqp::check_login(ports.amqp, USER, password).await.is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.home.not_ready(READY_WITHIN));
            }
            tokio::time::sleep(CHILD_POLL).await;
        }
    }

    /// Starts a private name registry. Without one on its port, the node would start
    /// one that stays behind as a daemon.
    async fn start_epmd(&self) -> Result<Child, Error> {
        let port = self.settings.ports.epmd;
        let mut command = self.home.command(&self.epmd);
        command
            // It takes no unknown arguments, so the mark is its name.
            .arg0(self.home.processes.mark())
            .args(["-port", &port.to_string(), "-address", "127.0.0.1"]);
        let mut child = self.home.spawn(command)?;
        let deadline = Instant::now() + EPMD_READY_WITHIN;
        loop {
            if let Some(status) = exit_status(&mut child) {
                return Err(self.home.exited(EPMD_PROGRAM, status));
            }
            if epmd_answers(port).await.is_ok() {
                return Ok(child);
            }
            if Instant::now() > deadline {
                return Err(self.home.not_ready(EPMD_READY_WITHIN));
            }
            tokio::time::sleep(CHILD_POLL).await;
        }
    }

    fn write_configuration(&self) -> Result<(), Error> {
        let Settings {
            password, ports, ..
        } = &self.settings;
        let configuration = format!(
            "listeners.tcp.1 = 127.0.0.1:{}\n\
             default_user = {USER}\n\
             default_pass = {password}\n\
             disk_free_limit.absolute = 50MB\n\
             log.file = false\n\
             log.console = true\n\
             log.console.level = info\n",
            ports.amqp
        );
        write_private(&self.path_of("rabbitmq.conf"), &configuration)?;
        write_private(&self.path_of("enabled_plugins"), "[].\n")
    }

    /// A command with this node's environment and nothing of the machine's node.
    fn command(&self, program: &Path) -> Command {
        let Settings { node, ports, .. } = &self.settings;
        let mut command = self.home.command(program);
        command
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", ports.epmd.to_string())
            .env("RABBITMQ_NODENAME", node)
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", ports.amqp.to_string())
            .env("RABBITMQ_DIST_PORT", ports.distribution.to_string())
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_CTL_ERL_ARGS", ERLANG_ARGUMENTS)
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                format!("{ERLANG_ARGUMENTS} {NO_BUSY_WAITING} {SELDOM_COUNTED}"),
            );
        // Two of these are not there, which keeps those of the machine from being read.
        for (variable, name) in [
            ("RABBITMQ_CONF_ENV_FILE", "rabbitmq-env.conf"),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", "advanced.config"),
            ("RABBITMQ_CONFIG_FILE", "rabbitmq.conf"),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", "enabled_plugins"),
            ("RABBITMQ_FEATURE_FLAGS_FILE", "feature_flags"),
            ("RABBITMQ_GENERATED_CONFIG_DIR", "generated"),
            ("RABBITMQ_LOG_BASE", "log"),
            ("RABBITMQ_MNESIA_BASE", DATABASE),
            ("RABBITMQ_MNESIA_DIR", "mnesia/node"),
            ("RABBITMQ_PLUGINS_EXPAND_DIR", "mnesia/plugins"),
            ("RABBITMQ_PID_FILE", "pid"),
        ] {
            command.env(variable, self.path_of(name));
        }
        command
    }

    fn path_of(&self, name: &str) -> PathBuf {
        self.home.path.join(name)
    }

    /// Runs `rabbitmqctl` and returns what it printed.
    pub(super) async fn ctl(&self, args: &[&str]) -> Result<String, Error> {
        let failed = |output: String| Error::Rabbitmqctl {
            arguments: args.join(" "),
            output,
        };
        let mut command = self.command(&self.ctl);
        command.args(["--quiet", "--node", &self.settings.node]);
        command.args(args);
        let mut command = tokio::process::Command::from(command);
        let finished = tokio::time::timeout(CTL_WITHIN, command.kill_on_drop(true).output()).await;
        let output = match finished {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => return Err(failed(format!("no answer in {} s", CTL_WITHIN.as_secs()))),
        };
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(printed);
        }
        Err(failed(
            printed + String::from_utf8_lossy(&output.stderr).trim_end(),
        ))
    }

    /// Resolves when the node or its name registry exits without having been asked to.
    pub(super) async fn exited(&mut self) -> Error {
        let Some(children) = &mut self.children else {
            return std::future::pending().await;
        };
        let (program, status) = tokio::select! {
            status = wait_for_exit(&mut children.node) => (KIND.program, status),
            status = wait_for_exit(&mut children.epmd) => (EPMD_PROGRAM, status),
        };
        let error = self.home.exited(program, status);
        // Whatever this cannot end, the next start or stop reports.
        let _ = self.kill().await;
        error
    }

    pub(super) async fn stop(&mut self) -> Result<(), Error> {
        let stopped = self.home.processes.stop(STOP_SIGNAL, STOP_WITHIN).await;
        self.reap();
        stopped
    }

    pub(super) async fn kill(&mut self) -> Result<(), Error> {
        let killed = self.home.processes.kill().await;
        self.reap();
        killed
    }

    /// Collects the statuses of the children, which have ended.
    fn reap(&mut self) {
        if let Some(mut children) = self.children.take() {
            let _ = exit_status(&mut children.node);
            let _ = exit_status(&mut children.epmd);
        }
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        self.home.processes.kill_now();
        self.reap();
    }
}

/// Asks the registry for its names. It would log a connection that asks nothing.
async fn epmd_answers(port: u16) -> io::Result<()> {
    const NAMES_REQUEST: &[u8] = b"\0\x01n";
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(NAMES_REQUEST).await?;
        stream.read_u32().await.map(drop)
    };
    tokio::time::timeout(EPMD_READY_WITHIN, asked).await?
}

impl Children {
    fn exit_status(&mut self) -> Option<(&'static str, String)> {
        let node = exit_status(&mut self.node).map(|status| (KIND.program, status));
        node.or_else(|| exit_status(&mut self.epmd).map(|status| (EPMD_PROGRAM, status)))
    }
}
