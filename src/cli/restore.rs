//! `kvm-xen restore`: a saved guest goes on; and saving by the clock.

use std::path::Path;
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::Duration;

use super::args::{GoOnArgs, RestoreArgs, SaveArgs};
use super::run::{CliError, run_to_end, serve};
use crate::vmm::api::socket::ApiSocket;
use crate::vmm::config::{Console, MachineError};
use crate::vmm::exit::ExitReason;
use crate::vmm::machine::Machine;
use crate::vmm::restore::RestoreConfig;

pub fn restore(args: &RestoreArgs) -> Result<ExitCode, CliError> {
    let config = go_on_config(&args.go_on, &args.file);
    let socket = args.go_on.api_socket.as_deref().map(ApiSocket::bind).transpose()?;
    let (machine, _) = Machine::restore(&config, Box::new(std::io::stdout()))?;
    let server = serve(socket, &machine)?;
    let status = run_to_end(machine, &args.go_on.save);
    drop(server);
    status
}

/// How a guest goes on that comes from `path`.
pub(super) fn go_on_config(args: &GoOnArgs, path: &Path) -> RestoreConfig {
    let console = args.console.map(Console::from);
    RestoreConfig {
        path: path.to_owned(),
        time: args.time.into(),
        kvm_device: args.kvm.kvm_device.clone(),
        without: args.kvm.without.iter().copied().map(Into::into).collect(),
        console,
        input: console != Some(Console::None),
        on_restored: Vec::new(),
    }
}

/// Saves `machine` to `path` once it has run for so long, and ends it unless it
/// is to go on. A failure is told, and the guest goes on.
pub(super) fn save_after(
    machine: &Machine,
    path: &Path,
    after_ms: u64,
    args: &SaveArgs,
) -> Result<JoinHandle<()>, CliError> {
    let savable = machine.savable();
    let path = path.to_owned();
    let (go_on, handover) = (args.save_and_go_on, args.handover.mode());
    let work = move || {
        std::thread::sleep(Duration::from_millis(after_ms));
        let end = || {
            if !go_on {
                savable.shared.end(ExitReason::Saved);
            }
        };
        match savable.save(&path, handover, end) {
            Ok(report) => tracing::info!(
                bytes = report.bytes,
                beyond_memory = report.beyond_memory,
                pages = report.pages,
                stopped_us = report.stopped_for.as_micros(),
                guest_tsc = report.guest_tsc,
                handover = %report.handover,
                "the guest is saved"
            ),
            Err(error) => super::complain(&error),
        }
    };
    let thread = std::thread::Builder::new().name("save".to_owned()).spawn(work);
    let failed = |error| MachineError::Host { what: "the saving thread", error };
    thread.map_err(failed).map_err(CliError::from)
}
