//! What every process shows at `/metrics`, after real traffic and real faults, and what is made of it.

mod counted;
mod files;
mod looked_at;

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Runs Prometheus' own tool. Returns whether it is content, and what it said.
async fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("promtool is installed; `make setup` does it");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).await.expect("written");
    drop(stdin);
    let ended = tokio::time::timeout(crate::support::DEADLINE, child.wait_with_output())
        .await
        .expect("ends in time")
        .expect("ends");
    let said = [ended.stdout, ended.stderr].concat();
    (
        ended.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}
