//! `kvm-xen suspend`, `resume`, `pause` and `save`: what a running machine's control
//! socket can do, in one word.

use std::path::{Path, absolute};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{ResumeArgs, SaveCommandArgs, SocketArgs};
use super::client::Client;
use super::run::CliError;

/// Longer than the machine itself waits for its vCPUs, or for the guest.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Much memory takes long to write.
const SAVE_TIMEOUT: Duration = Duration::from_secs(3600);

fn put(socket: &Path, target: &str, body: &str, timeout: Duration) -> Result<Value, CliError> {
    Ok(Client::connect(socket)?.put(target, body, timeout)?)
}

pub fn suspend(args: &SocketArgs) -> Result<ExitCode, CliError> {
    put(&args.socket, "/v1/suspend", "", TIMEOUT)?;
    Ok(ExitCode::SUCCESS)
}

pub fn pause(args: &SocketArgs) -> Result<ExitCode, CliError> {
    put(&args.socket, "/v1/pause", "", TIMEOUT)?;
    Ok(ExitCode::SUCCESS)
}

pub fn resume(args: &ResumeArgs) -> Result<ExitCode, CliError> {
    let body = json!({ "cancelled": args.cancelled }).to_string();
    put(&args.machine.socket, "/v1/resume", &body, TIMEOUT)?;
    Ok(ExitCode::SUCCESS)
}

/// The file is meant from here, not from where the machine runs.
pub fn save(args: &SaveCommandArgs) -> Result<ExitCode, CliError> {
    let told = |why: String| CliError::Check(format!("{}: {why}", args.file.display()));
    let file = absolute(&args.file).map_err(|error| told(error.to_string()))?;
    let file = file.to_str().ok_or_else(|| told("the name is not UTF-8".to_owned()))?;
    let handover = args.handover.mode();
    let body = json!({
        "file": file, "go_on": args.go_on, "handover": handover,
    })
    .to_string();
    let saved = put(&args.machine.socket, "/v1/save", &body, SAVE_TIMEOUT)?;
    let handover = serde_json::from_value(saved["handover"].clone()).unwrap_or_default();
    let number = |name: &str| saved[name].as_u64().unwrap_or(0);
    super::say(format_args!(
        "saved {} bytes, {} of them not memory; the guest stood for {} ms{}\n",
        number("bytes"),
        number("bytes_beyond_memory"),
        number("stopped_ns") / 1_000_000,
        super::handover::handover_note(handover),
    ));
    Ok(ExitCode::SUCCESS)
}
