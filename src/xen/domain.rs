//! The domain: one Xen guest, the state of all its interfaces, its entrances.
//!
//! Locks, in three chains that never meet but in `layout`, the innermost:
//! `Vcpu::areas` → `layout`; `EventChannels::change` → `backends` → `layout`;
//! `Vcpu::timers` → `watchdogs`. Under `layout` come only the queues of FIFO
//! events, at most two, in the order of their numbers. Nobody takes `layout`
//! twice, and nobody sleeps holding a lock. Delivering an event takes `layout`
//! shared; only placing a page and changing the ABI of events take it
//! exclusively. `Xenstore`'s lock is taken with no other, and no other within it;
//! `Handover`'s too.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use vm_memory::{GuestAddress, GuestAddressSpace};

use super::dispatch::UnknownCalls;
use super::event_channel::EventChannels;
use super::handover::Handover;
use super::physmap::Physmap;
use super::sched::{Shutdown, Watchdogs};
use super::shared_info::{Layout, PrivatePage};
use super::vcpu::Vcpu;
use super::{Clock, Console, GrantTable, HvmParams, Platform, RunState, Xenstore};
use crate::pages::GuestRamHandle;

/// The most vCPUs of one domain, as of an HVM guest of Xen.
pub const MAX_VCPUS: u32 = 128;

/// A range of guest-physical space as `XENMEM_memory_map` reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// First byte.
    pub addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// E820 type, `xen_abi::memory::E820_*`: 1 RAM, 2 reserved, 3 ACPI tables.
    pub kind: u32,
}

impl MemoryMapEntry {
    /// First address after the range; stays at the last one where it would wrap.
    pub fn end(&self) -> u64 {
        self.addr.saturating_add(self.size)
    }
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
    /// Whether the FIFO ABI of event channels is offered. Without it
    /// `EVTCHNOP_init_control` answers `ENOSYS`, and guests stay with 2 levels.
    pub fifo_events: bool,
    /// Whether per-vCPU upcall vectors are offered (CPUID leaf 4, EAX bit 6).
    pub upcall_vector: bool,
    /// Frequency of the host's TSC in kHz, for CPUID leaf 3 subleaf 2.
    pub host_tsc_khz: u32,
    /// Page of the console ring, if the guest has a PV console.
    pub console_page: Option<GuestAddress>,
    /// Page of the store's ring, if the guest has a store.
    pub store_page: Option<GuestAddress>,
    /// How often the domain was moved or restored, plus one (CPUID leaf 3).
    pub incarnation: u32,
}

/// Why a domain could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// The number of vCPUs is not one that Xen has.
    #[error("a domain of {0} vCPUs; choose from 1 to {MAX_VCPUS}")]
    Vcpus(u32),
    /// The page behind an unmapped `shared_info` could not be had.
    #[error("no page for shared_info ({0}); free some memory")]
    PrivatePage(String),
}

/// One Xen guest. Shared by all its vCPU threads.
pub struct Domain {
    pub(super) config: DomainConfig,
    pub(super) memory: GuestRamHandle,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) platform: Arc<dyn Platform>,
    /// Where the shared structures are.
    pub(super) layout: RwLock<Layout>,
    /// What `shared_info` is until the guest maps it.
    pub(super) private: PrivatePage,
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) events: EventChannels,
    /// `HVM_PARAM_CALLBACK_IRQ` as the guest set it.
    pub(super) callback_via: AtomicU64,
    /// Whether the callback GSI is asserted now.
    pub(super) gsi_asserted: AtomicBool,
    /// One bit for each vCPU that polls event channels.
    pub(super) pollers: [AtomicU64; 2],
    pub(super) shutdown: Shutdown,
    pub(super) watchdogs: Mutex<Watchdogs>,
    /// `VMASST_TYPE_*` bits that the guest enabled.
    pub(super) vm_assist: AtomicU64,
    pub(super) clock_page_rewrites: AtomicU64,
    pub(super) params: HvmParams,
    pub(super) grants: GrantTable,
    pub(super) handover: Handover,
    pub(super) console: Console,
    pub(super) xenstore: Xenstore,
    pub(super) physmap: Physmap,
    pub(super) unknown_calls: UnknownCalls,
}

impl Domain {
    /// A domain before its first instruction.
    ///
    /// # Errors
    /// [`DomainError`]: a number of vCPUs that Xen does not have, no memory.
    pub fn new(
        config: DomainConfig,
        memory: GuestRamHandle,
        clock: Arc<dyn Clock>,
        platform: Arc<dyn Platform>,
    ) -> Result<Self, DomainError> {
        if !(1..=MAX_VCPUS).contains(&config.vcpus) {
            return Err(DomainError::Vcpus(config.vcpus));
        }
        let now_ns = clock.system_time_ns();
        let vcpus = (0..config.vcpus).map(|id| Vcpu::new(id, now_ns)).collect();
        Ok(Self {
            layout: RwLock::new(Layout::new(config.vcpus)),
            private: PrivatePage::new().map_err(DomainError::PrivatePage)?,
            vcpus,
            events: EventChannels::new(config.domain_id),
            callback_via: AtomicU64::new(0),
            gsi_asserted: AtomicBool::new(false),
            pollers: [AtomicU64::new(0), AtomicU64::new(0)],
            shutdown: Shutdown::new(),
            watchdogs: Mutex::new(Watchdogs::default()),
            vm_assist: AtomicU64::new(0),
            clock_page_rewrites: AtomicU64::new(0),
            params: HvmParams::new(&config),
            grants: GrantTable::new(&config),
            handover: Handover::default(),
            console: Console::new(config.console_page),
            xenstore: Xenstore::new(config.domain_id, config.store_page),
            physmap: Physmap::new(&config),
            unknown_calls: UnknownCalls::default(),
            config,
            memory,
            clock,
            platform,
        })
    }

    /// The guest's memory as it is now.
    pub fn memory(&self) -> <GuestRamHandle as GuestAddressSpace>::T {
        self.memory.memory()
    }

    /// What the domain was made of.
    pub fn config(&self) -> &DomainConfig {
        &self.config
    }

    /// Does the work that was asked of `vcpu`, on its own thread: call it
    /// before each entry into the guest, and after a wait. Cheap when there is
    /// none.
    pub fn before_entry(&self, vcpu: u32) {
        let Some(state) = self.vcpu(vcpu) else { return };
        state.upcall_raised.store(false, Ordering::Relaxed);
        if state.polling.load(Ordering::Relaxed) || state.waiting.load(Ordering::Relaxed) != 0 {
            self.stop_waiting(vcpu);
        }
        if state.blocked.load(Ordering::Relaxed) {
            state.blocked.store(false, Ordering::Relaxed);
            self.enter_runstate(vcpu, RunState::Running);
        }
        if state.requests.load(Ordering::Relaxed) != 0 {
            // Acquire: partner of the Release in `request`.
            let requests = state.requests.swap(0, Ordering::Acquire);
            if requests & REQUEST_CLOCK != 0 {
                self.publish_clock_pages(vcpu);
            }
        }
        if vcpu == 0 {
            self.finish_xenstore();
        }
        if vcpu == 0 && self.gsi_asserted.load(Ordering::Relaxed) {
            self.update_callback_gsi();
        }
    }

    /// Asks `vcpu` to publish its clock pages again before its next entry.
    /// No other vCPU is disturbed.
    pub fn request_clock_update(&self, vcpu: u32) {
        if let Some(state) = self.vcpu(vcpu) {
            request(&state.requests, REQUEST_CLOCK);
            self.platform.kick(vcpu);
        }
    }

    /// Publications of time pages after the first of each area: 0 for a guest
    /// whose clock was never touched.
    pub fn clock_page_rewrites(&self) -> u64 {
        self.clock_page_rewrites.load(Ordering::Relaxed)
    }

    pub(super) fn vcpu(&self, vcpu: u32) -> Option<&Vcpu> {
        usize::try_from(vcpu).ok().and_then(|index| self.vcpus.get(index))
    }

    /// The numbers of all vCPUs.
    pub(super) fn vcpu_ids(&self) -> std::ops::Range<u32> {
        0..self.config.vcpus
    }
}

/// Publish the clock pages again.
const REQUEST_CLOCK: u32 = 1;

fn request(requests: &AtomicU32, bit: u32) {
    // Release: partner of the Acquire in `before_entry`.
    requests.fetch_or(bit, Ordering::Release);
}

/// Locks; the data is plain numbers, valid even if a thread died holding it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks for reading, as [`lock`].
pub(super) fn read<T>(rwlock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    rwlock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Locks for writing, as [`lock`].
pub(super) fn write<T>(rwlock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    rwlock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::test_platform::{config, domain};
    use super::*;

    #[test]
    fn numbers_of_vcpus() {
        let (small, platform, clock) = domain(1);
        for (vcpus, good) in [(0, false), (1, true), (128, true), (129, false), (u32::MAX, false)] {
            let made =
                Domain::new(config(vcpus), small.memory.clone(), clock.clone(), platform.clone());
            match made {
                Ok(_) => assert!(good, "{vcpus}"),
                Err(error) => {
                    assert!(!good, "{vcpus}");
                    let text = format!("a domain of {vcpus} vCPUs; choose from 1 to 128");
                    assert_eq!(error.to_string(), text);
                }
            }
        }
    }
}
