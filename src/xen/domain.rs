//! The domain: one Xen guest, the state of all its interfaces, its entrances.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::{GuestAddress, GuestAddressSpace};

use super::{Call, CallingVcpu, Clock, Hypercall, Outcome, Platform};
use crate::pages::GuestRamHandle;

/// A range of guest-physical space as `XENMEM_memory_map` reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// First byte.
    pub addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// E820 type: 1 RAM, 2 reserved, 3 ACPI tables, 4 ACPI NVS.
    pub kind: u32,
}

/// What a domain is made of. Fixed for its life.
#[derive(Clone, Debug)]
pub struct DomainConfig {
    /// Number of vCPUs, 1 to 128.
    pub vcpus: u32,
    /// Domain number that the guest sees.
    pub domain_id: u16,
    /// The domain's UUID; its text is what `/sys/hypervisor/uuid` shows.
    pub uuid: [u8; 16],
    /// Xen version that is emulated: major, minor.
    pub xen_version: (u16, u16),
    /// Guest-physical memory map.
    pub memory_map: Vec<MemoryMapEntry>,
    /// Whether per-vCPU upcall vectors are offered (CPUID leaf 4, EAX bit 6).
    pub upcall_vector: bool,
    /// Frequency of the host's TSC in kHz, for CPUID leaf 3 subleaf 2.
    pub host_tsc_khz: u32,
    /// Page of the console ring, if the guest has a PV console.
    pub console_page: Option<GuestAddress>,
}

/// One Xen guest. Shared by all its vCPU threads.
pub struct Domain {
    pub(super) config: DomainConfig,
    pub(super) memory: GuestRamHandle,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) platform: Arc<dyn Platform>,
}

impl Domain {
    /// The guest's memory as it is now.
    pub fn memory(&self) -> <GuestRamHandle as GuestAddressSpace>::T {
        self.memory.memory()
    }
}
