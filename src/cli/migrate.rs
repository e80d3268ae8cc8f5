//! `kvm-xen receive` and `kvm-xen migrate`: a guest moves to another process.

use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::Duration;

use super::args::{ConsoleArg, ReceiveArgs};
use super::run::{CliError, run_to_end};
use crate::vmm::api::ApiServer;
use crate::vmm::api::http::Limits;
use crate::vmm::api::socket::ApiSocket;
use crate::vmm::config::{Console, MachineError};
use crate::vmm::exit::ExitReason;
use crate::vmm::machine::Machine;
use crate::vmm::migrate::MoveAddress;
use crate::vmm::migrate::receive;
use crate::vmm::migrate::send::{Migration, migrate};
use crate::vmm::restore::RestoreConfig;

pub fn receive(args: &ReceiveArgs) -> Result<ExitCode, CliError> {
    let at: MoveAddress = args.at.parse()?;
    let console = args.console.map(|console| match console {
        ConsoleArg::Serial => Console::Serial,
        ConsoleArg::Hvc => Console::Hvc,
        ConsoleArg::None => Console::None,
    });
    let config = RestoreConfig {
        path: at.path().to_owned(),
        time: args.time.into(),
        kvm_device: args.kvm.kvm_device.clone(),
        without: args.kvm.without.iter().copied().map(Into::into).collect(),
        console,
        input: console != Some(Console::None),
        on_restored: Vec::new(),
    };
    let socket = args.api_socket.as_deref().map(ApiSocket::bind).transpose()?;
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
    let status = run_to_end(machine, &args.save);
    drop(server);
    status
}

/// Migrates `machine` once it has run for so long. A failure is told, and the
/// guest goes on.
pub(super) fn migrate_after(
    machine: &Machine,
    to: &str,
    after_ms: u64,
) -> Result<JoinHandle<()>, CliError> {
    let (savable, to) = (machine.savable(), to.parse::<MoveAddress>()?);
    let work = move || {
        std::thread::sleep(Duration::from_millis(after_ms));
        let end = || savable.shared.end(ExitReason::Migrated);
        match migrate(&savable, &to, &Migration::default(), end) {
            Ok(done) => tracing::info!(
                rounds = done.rounds,
                sent_bytes = done.sent_bytes,
                rate_bytes_per_s = done.rate_bytes_per_s,
                downtime_us = done.downtime_ns / 1000,
                total_us = done.total_ns / 1000,
                "the guest is migrated"
            ),
            Err(error) => super::complain(&error),
        }
    };
    let thread = std::thread::Builder::new().name("migrate".to_owned()).spawn(work);
    let failed = |error| MachineError::Host { what: "the migrating thread", error };
    thread.map_err(failed).map_err(CliError::from)
}
