//! Run unmodified Xen PVH guests on KVM, with an exact clock.
//!
//! The layer between KVM and a Xen guest, for authors of virtual machine
//! monitors: CPUID leaves, hypercalls, event channels, timers, runstate, and a
//! system time that is one exact function of the guest's TSC, written into the
//! guest's page once and never again.
//!
//! # Rooms
//!
//! Each may use those above it and none below.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`clock`] | the arithmetic of time: pure functions, integers only |
//! | [`host`] | readings of this host's clocks |
//! | [`pages`] | the only writer of clock pages in guest memory |
//! | [`xen`] | the emulated hypervisor: state machines behind traits |
//! | [`vmclock`] | the VMClock and VM generation devices, and their ACPI |
//! | [`kvm`] | the only caller of KVM |
//! | `vmm`, `cli` | a small machine and its command line, behind the feature `vmm` |
//!
//! Take the library without its machine by `default-features = false`. The wire
//! format is the crate `xen_abi`.
//!
//! # The clock
//!
//! A [`SystemTimeLine`](clock::SystemTimeLine) has two readings: what is exact,
//! and what a guest computes from the page, bit for bit.
//!
//! ```
//! use kvm_xen::clock::{SystemTimeLine, TscFrequency};
//!
//! let frequency = TscFrequency::from_khz(2_500_000)?;
//! let line = SystemTimeLine::new(frequency, 0, 0)?;
//! let hour = 3_600 * 2_500_000_000;
//! assert_eq!(line.exact_system_time_ns(hour), 3_600_000_000_000);
//! // A multiplier of 32 bits can do no better, and the bound is known.
//! assert_eq!(line.system_time_ns(hour), 3_600_000_000_209);
//! assert_eq!(line.published_error_bound_ns(hour), 211);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A machine
//!
//! [`kvm::XenVm::new`] makes the VM in the order that leaves its clock alone,
//! [`xen::Domain`] is the guest's hypervisor, [`kvm::KvmPlatform`] ties both
//! together. `examples/embed` is a whole monitor in 150 lines.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use kvm_xen::kvm::{Capabilities, KVM_DEVICE, XenVm, XenVmConfig};
//! use kvm_xen::pages::GuestRam;
//! use kvm_xen::xen::Clock;
//! use vm_memory::GuestAddress;
//!
//! let (kvm, caps) = Capabilities::probe(Path::new(KVM_DEVICE))?;
//! let ram = GuestRam::from_ranges(&[(GuestAddress(0), 512 << 20)])?;
//! let config = XenVmConfig { vcpus: 2, hypercalls: caps.pick_hypercalls()? };
//! let machine = XenVm::new(&kvm, &caps, &ram, config)?;
//! println!("system time {} ns", machine.clock.system_time_ns());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use xen_abi;

pub mod clock;
pub mod host;
pub mod kvm;
pub mod pages;
pub mod state;
pub mod vmclock;
pub mod xen;

#[cfg(feature = "vmm")]
pub mod cli;
#[cfg(feature = "vmm")]
pub mod vmm;
