//! Events that neither the guest nor a back end sends: VIRQs and PIRQs.

use std::sync::atomic::Ordering;

use xen_abi::xen::{VIRQ_DEBUG, VIRQ_TIMER, VIRQ_XENOPROF, VIRQ_XENPMU};

use super::super::domain::Domain;
use super::State;

/// VIRQs that each vCPU has for itself. All others, those of the architecture
/// among them, are global: bound on vCPU 0 first, then to any.
pub(super) fn is_global(virq: u32) -> bool {
    !matches!(virq, VIRQ_TIMER | VIRQ_DEBUG | VIRQ_XENOPROF | VIRQ_XENPMU)
}

impl Domain {
    /// Raises a `VIRQ_*`: one of its own at `vcpu`, a global one (console,
    /// domain exception, …) wherever the guest bound it, whatever `vcpu` says.
    /// Whether the guest has bound it; if not, nothing happens, as in Xen.
    pub fn raise_virq(&self, vcpu: u32, virq: u32) -> bool {
        let vcpu = if is_global(virq) { 0 } else { vcpu };
        let Some(state) = self.vcpu(vcpu) else { return false };
        let slot = usize::try_from(virq).ok().and_then(|virq| state.virqs.get(virq));
        // Acquire: partner of the Release in `bind_virq`.
        let port = slot.map_or(0, |slot| slot.load(Ordering::Acquire));
        self.raise_if_bound(port, State::Virq(virq))
    }

    /// Raises a physical interrupt that the guest bound with
    /// `EVTCHNOP_bind_pirq`; whether it has. An HVM guest may bind any PIRQ in
    /// range; only a machine that has devices raises one.
    pub fn raise_pirq(&self, pirq: u32) -> bool {
        let slot = usize::try_from(pirq).ok().and_then(|pirq| self.events.pirqs.get(pirq));
        let port = slot.map_or(0, |slot| slot.load(Ordering::Acquire));
        self.raise_if_bound(port, State::Pirq(pirq))
    }

    fn raise_if_bound(&self, port: u32, state: State) -> bool {
        let channel = self.events.ports.get(port);
        // The port was closed, and may be another's, since the slot was read.
        let bound = channel.state == state;
        if bound {
            self.raise_channel(port, channel);
        }
        bound
    }
}
