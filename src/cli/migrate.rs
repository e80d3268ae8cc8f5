//! `kvm-xen receive` and `kvm-xen migrate`: a guest moves to another process.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::Duration;

use super::args::{MigrateArgs, ReceiveArgs, SaveArgs};
use super::restore::go_on_config;
use super::run::{CliError, run_to_end};
use crate::vmm::api::ApiServer;
use crate::vmm::api::http::Limits;
use crate::vmm::api::socket::ApiSocket;
use crate::vmm::config::MachineError;
use crate::vmm::exit::ExitReason;
use crate::vmm::handover::HandoverMode;
use crate::vmm::machine::Machine;
use crate::vmm::migrate::receive;
use crate::vmm::migrate::send::{Migration, migrate};
use crate::vmm::migrate::{MovePlace, Phase, Progress};

pub fn receive(args: &ReceiveArgs) -> Result<ExitCode, CliError> {
    let at = MovePlace::new(&args.at, args.tls.tls_dir.as_deref())?;
    let config = go_on_config(&args.go_on, Path::new(&args.at));
    let socket = args.go_on.api_socket.as_deref().map(ApiSocket::bind).transpose()?;
    let waiting = || tracing::info!(at = args.at, "waiting for a guest");
    let sink = Box::new(std::io::stdout());
    let (machine, _) = receive::receive(&at, &config, sink, waiting)?;
    let server = socket
        .map(|socket| ApiServer::start(socket, machine.control(), Limits::default()))
        .transpose();
    if let Err(error) = &server {
        // The guest is ours now: it runs, with or without.
        super::complain(format_args!("no control socket: {error}"));
    }
    let status = run_to_end(machine, &args.go_on.save);
    drop(server);
    status
}

/// Has a running process move its guest, and shows how far it is.
pub fn ask(args: &MigrateArgs) -> Result<ExitCode, CliError> {
    let Some(to) = &args.to else {
        request(&args.api_socket, "PUT", "/v1/migrate/take-back", "")?;
        return follow(&args.api_socket, request(&args.api_socket, "GET", PATH, "")?);
    };
    // What is wrong with it is told before anybody is asked.
    MovePlace::new(to, args.tls.tls_dir.as_deref())?;
    let handover = HandoverMode::from(args.handover.handover);
    let mut body = serde_json::json!({ "to": to, "handover": handover });
    if let Some(directory) = &args.tls.tls_dir {
        let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.clone());
        body["tls_dir"] = serde_json::json!(absolute);
    }
    let progress = request(&args.api_socket, "PUT", PATH, &body.to_string())?;
    follow(&args.api_socket, progress)
}

const PATH: &str = "/v1/migrate";

/// Shows a migration until it has ended.
fn follow(socket: &Path, mut progress: Progress) -> Result<ExitCode, CliError> {
    let (mut shown, mut doubted) = (0, false);
    loop {
        if progress.rounds != shown {
            shown = progress.rounds;
            super::say(format_args!(
                "round {shown}: {} MiB sent, {} KiB remain, {} MiB/s, estimated downtime {} ms\n",
                progress.sent_bytes >> 20,
                progress.remaining_bytes >> 10,
                progress.rate_bytes_per_s >> 20,
                progress.estimated_downtime_ns / 1_000_000,
            ));
        }
        match progress.phase {
            Phase::Done => {
                super::say(format_args!(
                    "migrated: {} rounds, {} MiB in {} ms, the guest stood still for {} ms{}\n",
                    progress.rounds,
                    progress.sent_bytes >> 20,
                    progress.total_ns / 1_000_000,
                    progress.downtime_ns / 1_000_000,
                    super::handover::handover_note(progress.handover),
                ));
                return Ok(ExitCode::SUCCESS);
            }
            Phase::Failed => {
                let why = progress.error.unwrap_or_else(|| "the migration failed".to_owned());
                return Err(CliError::Check(why));
            }
            Phase::Unknown if !doubted => {
                doubted = true;
                super::complain(format_args!(
                    "the connection broke, and it is not known whether the guest runs at the \
                     destination: it stands still here, and the destination is asked; where it \
                     is certain that it does not run there: kvm-xen migrate {} --take-back",
                    socket.display()
                ));
            }
            Phase::None | Phase::Copying | Phase::Stopped | Phase::Unknown => {}
        }
        std::thread::sleep(Duration::from_millis(50));
        progress = request(socket, "GET", PATH, "")?;
    }
}

/// Asks the process behind a control socket about its migration.
fn request(socket: &Path, method: &str, path: &str, body: &str) -> Result<Progress, CliError> {
    let failed = |why: &dyn std::fmt::Display| {
        CliError::Check(format!("control socket {}: {why}", socket.display()))
    };
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.take(1 << 20).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| failed(&error))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| failed(&"no answer"))?;
    if !head.starts_with("HTTP/1.1 200 ") {
        let value: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        let why = value.get("error").and_then(serde_json::Value::as_str);
        return Err(failed(&why.unwrap_or("an answer that is none")));
    }
    serde_json::from_str(body).map_err(|error| failed(&error))
}

/// Migrates `machine` once it has run for so long. A failure is told, and the
/// guest goes on.
pub(super) fn migrate_after(
    machine: &Machine,
    args: &SaveArgs,
    to: &str,
    after_ms: u64,
) -> Result<JoinHandle<()>, CliError> {
    let to = MovePlace::new(to, args.migrate_tls_dir.as_deref())?;
    let savable = machine.savable();
    let handover = args.handover.into();
    let work = move || {
        std::thread::sleep(Duration::from_millis(after_ms));
        let end = || savable.shared.end(ExitReason::Migrated);
        match migrate(&savable, &to, &Migration::default(), handover, end) {
            Ok(done) => tracing::info!(
                rounds = done.rounds,
                sent_bytes = done.sent_bytes,
                rate_bytes_per_s = done.rate_bytes_per_s,
                downtime_us = done.downtime_ns / 1000,
                total_us = done.total_ns / 1000,
                handover = %done.handover,
                "the guest is migrated"
            ),
            Err(error) => super::complain(&error),
        }
    };
    let thread = std::thread::Builder::new().name("migrate".to_owned()).spawn(work);
    let failed = |error| MachineError::Host { what: "the migrating thread", error };
    thread.map_err(failed).map_err(CliError::from)
}
