//! Run unmodified Xen HVM and PVH guests on KVM, with an exact clock.
//!
//! Rooms, each of which may use those above it and none below: [`clock`],
//! [`host`], [`pages`], [`xen`], [`kvm`], and behind the feature `vmm` the small
//! machine of [`vmm`] with its command line.

pub mod clock;
pub mod host;
pub mod kvm;
pub mod pages;
pub mod xen;

#[cfg(feature = "vmm")]
pub mod cli;
#[cfg(feature = "vmm")]
pub mod vmm;
