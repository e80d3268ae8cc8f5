//! `kvm-xen probe`: what this host's KVM offers, which modes work, and why not.

use std::process::ExitCode;

use super::args::ProbeArgs;
use super::run::CliError;
use super::table::Table;
use crate::kvm::{Capabilities, HypercallMode, ProbeError};
use crate::xen::MAX_VCPUS;

fn verdict(result: Result<(), ProbeError>) -> String {
    match result {
        Ok(()) => "works".to_owned(),
        Err(ProbeError::Unsupported { reason, .. }) => format!("no: {reason}"),
        Err(error) => format!("no: {error}"),
    }
}

pub fn probe(args: &ProbeArgs) -> Result<ExitCode, CliError> {
    let (_, caps) = Capabilities::probe(&args.kvm_device)?;
    let mut table = Table::default();
    table.tell("KVM_CAP_XEN_HVM", format!("{:#x}", caps.xen));
    table.tell("TSC scaling", if caps.tsc_scaling { "yes" } else { "no" });
    table.tell(
        "vCPUs",
        format!(
            "{} recommended, {} at the most",
            caps.recommended_vcpus,
            caps.max_vcpus.min(MAX_VCPUS)
        ),
    );
    table.tell("--hypercalls kvm-xen", verdict(caps.check_hypercalls(HypercallMode::KvmXen)));
    table.tell("--hypercalls port-io", verdict(caps.check_hypercalls(HypercallMode::PortIo)));
    table.tell(
        "--hypercalls auto",
        match caps.pick_hypercalls() {
            Ok(mode) => format!("takes {mode}"),
            Err(error) => format!("no: {error}"),
        },
    );
    table.tell("--clock owned", "works");
    table.tell("--clock guarded", verdict(caps.check_guarded()));
    table.tell(
        "unmodified Linux",
        match caps.check_hypercalls(HypercallMode::KvmXen) {
            Ok(()) => "works",
            Err(_) => {
                "no: Linux 6.0 and later make hypercalls by VMCALL, which only \
                       CONFIG_KVM_XEN intercepts; bare-metal guests work"
            }
        },
    );
    super::say(&table);
    Ok(ExitCode::SUCCESS)
}
