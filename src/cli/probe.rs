//! `kvm-xen probe`: what this host's KVM offers, which modes work, and why not.

use std::process::ExitCode;

use super::args::{KvmArgs, ProbeArgs};
use super::run::CliError;
use super::table::Table;
use crate::kvm::{CallbackDelivery, Capabilities, ClockMode, HypercallMode, ProbeError};
use crate::xen::MAX_VCPUS;

fn verdict(result: Result<(), ProbeError>) -> String {
    match result {
        Ok(()) => "works".to_owned(),
        Err(ProbeError::Unsupported { reason, .. }) => format!("no: {reason}"),
        Err(error) => format!("no: {error}"),
    }
}

fn hypercalls_auto(caps: &Capabilities) -> String {
    match caps.pick_hypercalls() {
        Ok(HypercallMode::KvmXen) => "takes kvm-xen".to_owned(),
        Ok(HypercallMode::PortIo) => "takes port-io: KVM intercepts no Xen hypercalls; the \
            kernel's VMCALLs are rewritten in memory, those of modules are out of reach"
            .to_owned(),
        Err(error) => format!("no: {error}"),
    }
}

fn clock_owned(caps: &Capabilities) -> String {
    match caps.callback_delivery(ClockMode::Owned) {
        Ok(_) => "works".to_owned(),
        Err(ProbeError::Unsupported { reason, .. }) => {
            format!("works, but not with the VM-wide callback vector (Linux 5.10): {reason}")
        }
        Err(error) => format!("no: {error}"),
    }
}

fn clock_auto(caps: &Capabilities) -> &'static str {
    match caps.callback_delivery(ClockMode::Auto) {
        Ok(CallbackDelivery::Owned) => "takes owned",
        Ok(CallbackDelivery::Guarded) => {
            "takes owned, and guarded for a guest that asks for the VM-wide callback vector"
        }
        Err(_) => "takes owned; a guest that asks for the VM-wide callback vector is ended",
    }
}

fn linux(caps: &Capabilities) -> String {
    match (caps.pick_hypercalls(), caps.callback_delivery(ClockMode::Auto)) {
        (Ok(HypercallMode::KvmXen), Ok(_)) => "works".to_owned(),
        (Ok(HypercallMode::PortIo), Ok(_)) => "works, by port I/O".to_owned(),
        (Ok(_), Err(_)) => "Linux 6.1 and later, where KVM executes all instructions of a \
            kernel (a software KVM may not); bare-metal guests work"
            .to_owned(),
        (Err(error), _) => format!("no: {error}"),
    }
}

impl KvmArgs {
    /// What the chosen KVM offers, less what is to be done without.
    pub fn probe(&self) -> Result<Capabilities, ProbeError> {
        let (_, caps) = Capabilities::probe(&self.kvm_device)?;
        Ok(self.without.iter().copied().map(Into::into).fold(caps, Capabilities::without))
    }
}

pub fn probe(args: &ProbeArgs) -> Result<ExitCode, CliError> {
    let caps = args.kvm.probe()?;
    let mut table = Table::default();
    table.tell("KVM_CAP_XEN_HVM", format!("{:#x}", caps.xen));
    table.tell("KVM_CAP_HYPERV_SYNIC2", if caps.synic { "yes" } else { "no" });
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
    table.tell("--hypercalls auto", hypercalls_auto(&caps));
    table.tell("--clock owned", clock_owned(&caps));
    table.tell("--clock guarded", verdict(caps.check_guarded()));
    table.tell("--clock auto", clock_auto(&caps));
    table.tell("unmodified Linux", linux(&caps));
    super::say(&table);
    Ok(ExitCode::SUCCESS)
}
