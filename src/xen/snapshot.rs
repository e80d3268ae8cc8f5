//! The whole emulated hypervisor outside of the guest, as plain data, and back.
//!
//! Taken while no vCPU runs and none waits in a hypercall. What the guest keeps
//! in its own memory (event bits, queues, clock pages, grant entries, rings) is
//! not repeated: it goes with the memory, and no page of it is written again.

mod bytes;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;
use xen_abi::arch_x86::VCPU_INFO_TIME_OFFSET;
use xen_abi::errno::Errno;

pub use bytes::Bytes;

use super::domain::lock;
use super::event_channel::EventsState;
use super::grant_table::GrantsState;
use super::physmap::PhysmapState;
use super::sched::SchedState;
use super::shared_info::LayoutState;
use super::vcpu::VcpuState;
use super::{
    Clock, Domain, DomainConfig, DomainError, MemoryMapEntry, PageOwner, Platform, Spent,
    StoreStateError, VcpuArea, upcall,
};
use crate::pages::GuestRamHandle;

/// Why a domain's state can not be taken or taken over.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A value that no domain has.
    #[error("the saved guest has {what} {value}, which there is not")]
    Value {
        /// What it is.
        what: &'static str,
        /// The value.
        value: u64,
    },
    /// KVM writes the clock pages.
    #[error(
        "KVM owns this guest's clock pages, and its clock cannot be carried over: run the guest \
         with --clock owned"
    )]
    KvmOwnsClock,
    /// A back end is at work on the guest's memory.
    #[error("a back end still holds grants of the guest: stop it first")]
    GrantsInUse,
    /// The machine can not serve it.
    #[error("this machine cannot serve the saved guest: error {}", .0.0)]
    Platform(Errno),
    /// The store's nodes.
    #[error(transparent)]
    Store(#[from] StoreStateError),
    /// What it is made of.
    #[error(transparent)]
    Domain(#[from] DomainError),
}

/// The emulated hypervisor's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainState {
    /// What the domain was made of.
    pub config: ConfigState,
    /// Where the shared structures are.
    pub layout: LayoutState,
    /// Event channels.
    pub events: EventsState,
    /// Each vCPU.
    pub vcpus: Vec<VcpuState>,
    /// `HVM_PARAM_CALLBACK_IRQ`, as it took effect.
    pub callback_via: u64,
    /// HVM parameters that are not 0: index and value.
    pub params: Vec<(u32, u64)>,
    /// `VMASST_TYPE_*` bits.
    pub vm_assist: u64,
    /// Watchdogs, and the code of a shutdown to come.
    pub sched: SchedState,
    /// The grant table.
    pub grants: GrantsState,
    /// Accounts of memory.
    pub physmap: PhysmapState,
    /// The console's event channel.
    pub console_port: Option<u32>,
    /// Clock pages written again so far.
    pub clock_page_rewrites: u64,
}

/// [`DomainConfig`] outside of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Domain number that the guest sees.
    pub domain_id: u16,
    /// The domain's UUID.
    pub uuid: [u8; 16],
    /// Xen version: major, minor.
    pub xen_version: (u16, u16),
    /// Guest-physical memory map: address, size, E820 type.
    pub memory_map: Vec<(u64, u64, u32)>,
    /// FIFO event channels are offered.
    pub fifo_events: bool,
    /// Upcall vectors of vCPUs' own are offered.
    pub upcall_vector: bool,
    /// Page of the console ring.
    pub console_page: Option<u64>,
    /// Page of the store's ring.
    #[serde(default)]
    pub store_page: Option<u64>,
}

impl ConfigState {
    fn of(config: &DomainConfig) -> Self {
        let map = config.memory_map.iter();
        Self {
            vcpus: config.vcpus,
            domain_id: config.domain_id,
            uuid: config.uuid,
            xen_version: config.xen_version,
            memory_map: map.map(|entry| (entry.addr, entry.size, entry.kind)).collect(),
            fifo_events: config.fifo_events,
            upcall_vector: config.upcall_vector,
            console_page: config.console_page.map(|page| page.0),
            store_page: config.store_page.map(|page| page.0),
        }
    }

    /// The configuration, on a host of this frequency, after so many moves.
    #[must_use]
    pub fn config(&self, host_tsc_khz: u32, incarnation: u32) -> DomainConfig {
        let map = self.memory_map.iter();
        DomainConfig {
            vcpus: self.vcpus,
            domain_id: self.domain_id,
            uuid: self.uuid,
            xen_version: self.xen_version,
            memory_map: map
                .map(|&(addr, size, kind)| MemoryMapEntry { addr, size, kind })
                .collect(),
            fifo_events: self.fifo_events,
            upcall_vector: self.upcall_vector,
            host_tsc_khz,
            console_page: self.console_page.map(GuestAddress),
            store_page: self.store_page.map(GuestAddress),
            incarnation,
        }
    }
}

impl Domain {
    /// The state of a domain of which no vCPU runs or waits in a hypercall, no
    /// timer expires and no back end works meanwhile.
    ///
    /// # Errors
    /// [`RestoreError::KvmOwnsClock`], [`RestoreError::GrantsInUse`].
    pub fn snapshot(&self) -> Result<DomainState, RestoreError> {
        let vcpus = self.vcpus.iter().map(super::vcpu::Vcpu::snapshot);
        let params = (0..xen_abi::hvm_params::HVM_NR_PARAMS)
            .map(|index| (index, self.params.get(index)))
            .filter(|(_, value)| *value != 0);
        Ok(DomainState {
            config: ConfigState::of(&self.config),
            layout: self.snapshot_layout(),
            events: self.snapshot_events(),
            vcpus: vcpus.collect::<Result<_, _>>()?,
            callback_via: self.callback_via.load(Ordering::SeqCst),
            params: params.collect(),
            vm_assist: self.vm_assist.load(Ordering::SeqCst),
            sched: self.snapshot_sched(),
            grants: self.grants.snapshot()?,
            physmap: self.physmap.snapshot(),
            console_port: self.console.port(),
            clock_page_rewrites: self.clock_page_rewrites.load(Ordering::SeqCst),
        })
    }

    /// A domain as it was, over memory as it was. It does not go on yet: attach
    /// its back ends, restore its vCPUs, then call [`Domain::go_on`].
    ///
    /// # Errors
    /// [`RestoreError`] for a state that no domain has.
    pub fn restore(
        config: DomainConfig,
        memory: GuestRamHandle,
        clock: Arc<dyn Clock>,
        platform: Arc<dyn Platform>,
        from: &DomainState,
    ) -> Result<Self, RestoreError> {
        let domain = Self::new(config, memory, clock, platform)?;
        if domain.vcpus.len() != from.vcpus.len() {
            let value = from.vcpus.len() as u64;
            return Err(RestoreError::Value { what: "number of vCPUs", value });
        }
        domain.restore_layout(&from.layout)?;
        domain.restore_events(&from.events)?;
        for (vcpu, state) in domain.vcpu_ids().zip(&from.vcpus) {
            domain.restore_vcpu(vcpu, state)?;
        }
        let via = upcall::decode(from.callback_via);
        domain.platform.callback_via(via).map_err(RestoreError::Platform)?;
        domain.callback_via.store(from.callback_via, Ordering::SeqCst);
        for index in 0..xen_abi::hvm_params::HVM_NR_PARAMS {
            let saved = from.params.iter().find(|(saved, _)| *saved == index);
            domain.params.set(index, saved.map_or(0, |(_, value)| *value));
        }
        domain.vm_assist.store(from.vm_assist, Ordering::SeqCst);
        domain.restore_sched(&from.sched)?;
        domain.grants.restore(&from.grants)?;
        domain.physmap.restore(&from.physmap)?;
        if let Some(port) = from.console_port {
            domain.console.restore(port);
        }
        domain.clock_page_rewrites.store(from.clock_page_rewrites, Ordering::SeqCst);
        Ok(domain)
    }

    fn restore_vcpu(&self, vcpu: u32, from: &VcpuState) -> Result<(), RestoreError> {
        let missing = RestoreError::Value { what: "vCPU", value: vcpu.into() };
        let state = self.vcpu(vcpu).ok_or(missing)?;
        state.restore(from)?;
        if from.upcall_vector != 0 {
            self.platform.upcall_vector(vcpu, from.upcall_vector);
        }
        let info = from.info.time_at.map(|at| at.wrapping_sub(VCPU_INFO_TIME_OFFSET as u64));
        for (area, gpa) in [(VcpuArea::VcpuInfo, info), (VcpuArea::TimeInfo, from.time.time_at)] {
            let Some(gpa) = gpa else { continue };
            match self.platform.area_placed(vcpu, area, Some(GuestAddress(gpa))) {
                Ok(PageOwner::Us) => {}
                Ok(PageOwner::Kvm) => return Err(RestoreError::KvmOwnsClock),
                Err(errno) => return Err(RestoreError::Platform(errno)),
            }
        }
        Ok(())
    }

    /// A restored domain goes on, `gap_ns` of system time after it stopped, which
    /// is accounted as stolen: its timers are set, its pending upcalls raised.
    /// Its guest TSC is right and its local APICs are what they were; its vCPUs
    /// run next.
    pub fn go_on(&self, gap_ns: u64) {
        for vcpu in self.vcpu_ids() {
            if gap_ns > 0 {
                self.account_runstate(vcpu, Spent { runnable_ns: gap_ns, blocked_ns: 0 });
            }
            self.change_timers(vcpu, |_| {});
            // Its interrupt is in the local APIC, but once more does no harm,
            // and an upcall that is lost does.
            self.raise_if_pending(vcpu);
        }
        self.refresh_wallclock();
    }

    /// The latest system time that the state mentions, ns: a check of the clock
    /// with which it is restored.
    #[must_use]
    pub fn runstate_entry_ns(&self) -> u64 {
        let entry = |vcpu: &super::vcpu::Vcpu| lock(&vcpu.runstate).snapshot().entry_ns;
        self.vcpus.iter().map(entry).max().unwrap_or(0)
    }
}
