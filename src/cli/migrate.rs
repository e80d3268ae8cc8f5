//! `kvm-xen receive` and `kvm-xen migrate`: a guest moves to another process.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::args::{MigrateArgs, ReceiveArgs, SaveArgs};
use super::client::Client;
use super::restore::go_on_config;
use super::run::{CliError, run_to_end};
use crate::vmm::api::ApiServer;
use crate::vmm::api::http::Limits;
use crate::vmm::api::socket::ApiSocket;
use crate::vmm::config::MachineError;
use crate::vmm::machine::Machine;
use crate::vmm::migrate::receive;
use crate::vmm::migrate::{MigrateError, MovePlace, Phase, Progress};

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
    let mut body = serde_json::json!({ "to": args.to, "handover": args.handover.mode() });
    if let Some(to) = &args.to {
        // What is wrong with it is told before anybody is asked.
        MovePlace::new(to, args.tls.tls_dir.as_deref())?;
    }
    if let Some(directory) = &args.tls.tls_dir {
        let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.clone());
        body["tls_dir"] = serde_json::json!(absolute);
    }
    let mut client = Client::connect(&args.api_socket)?;
    if args.cancel {
        return cancel(&mut client);
    }
    let progress = match args.take_back {
        true => client.put("/v1/migrate/take-back", "", PATIENCE)?,
        false => client.put(PATH, &body.to_string(), PATIENCE)?,
    };
    follow(&mut client, &args.api_socket, progress)
}

const PATH: &str = "/v1/migrate";
/// The machine answers at once, unless its host has much else to do.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Ends a migration, and waits until it has ended.
fn cancel(client: &mut Client) -> Result<ExitCode, CliError> {
    let mut progress: Progress = client.get(PATH)?;
    if matches!(progress.phase, Phase::None | Phase::Failed) {
        return Err(CliError::Check("there is no migration to cancel".to_owned()));
    }
    client.put::<Progress>("/v1/migrate/cancel", "", PATIENCE)?;
    loop {
        let why = match progress.phase {
            Phase::Failed => {
                super::say("cancelled: the guest goes on where it is\n");
                return Ok(ExitCode::SUCCESS);
            }
            Phase::Done => "the guest runs elsewhere",
            Phase::Unknown => "it is not known whether the guest runs at the destination",
            Phase::None | Phase::Copying | Phase::Stopped => {
                std::thread::sleep(LOOK_EVERY);
                progress = client.get(PATH)?;
                continue;
            }
        };
        return Err(CliError::Check(format!("too late to cancel: {why}")));
    }
}

/// Shows a migration until it has ended.
fn follow(
    client: &mut Client,
    socket: &Path,
    mut progress: Progress,
) -> Result<ExitCode, CliError> {
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
        std::thread::sleep(LOOK_EVERY);
        progress = client.get(PATH)?;
    }
}

/// Migrates `machine` once it has run for so long. A failure is told, and the
/// guest goes on.
pub(super) fn migrate_after(
    machine: &Machine,
    args: &SaveArgs,
    to: &str,
    after_ms: u64,
) -> Result<(), CliError> {
    let to = MovePlace::new(to, args.migrate_tls_dir.as_deref())?;
    let control = machine.control();
    let handover = args.handover.mode();
    let work = move || {
        std::thread::sleep(Duration::from_millis(after_ms));
        match control.migrate_and_wait(&to, handover) {
            Ok(done) => tracing::info!(
                rounds = done.rounds,
                sent_bytes = done.sent_bytes,
                rate_bytes_per_s = done.rate_bytes_per_s,
                downtime_us = done.downtime_ns / 1000,
                total_us = done.total_ns / 1000,
                handover = %done.handover,
                "the guest is migrated"
            ),
            // Told where the machine ends.
            Err(MigrateError::Ended) => {}
            Err(error) => super::complain(&error),
        }
        control.migration().tell();
    };
    let thread = std::thread::Builder::new().name("migrate".to_owned()).spawn(work);
    let failed = |error| MachineError::Host { what: "the migrating thread", error };
    thread.map(drop).map_err(failed).map_err(CliError::from)
}
