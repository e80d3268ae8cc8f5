//! The KVM ioctls that `kvm-ioctls` lacks, as thin wrappers: Xen configuration
//! and attributes, the VM-scope TSC frequency, and the per-vCPU TSC offset.
//!
//! Numbers and structures: Linux `include/uapi/linux/kvm.h` and
//! `arch/x86/include/uapi/asm/kvm.h`; semantics: `Documentation/virt/kvm/api.rst`.

#![expect(unsafe_code, reason = "ioctls take raw pointers")]

use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr, kvm_xen_hvm_attr, kvm_xen_hvm_config,
    kvm_xen_vcpu_attr,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::errno::{Error, Result};
use vmm_sys_util::ioctl::{ioctl_with_ptr, ioctl_with_ref, ioctl_with_val};

mod number {
    use kvm_bindings::{
        KVMIO, kvm_device_attr, kvm_xen_hvm_attr, kvm_xen_hvm_config, kvm_xen_vcpu_attr,
    };
    use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr};

    ioctl_iow_nr!(KVM_XEN_HVM_CONFIG, KVMIO, 0x7a, kvm_xen_hvm_config);
    ioctl_iow_nr!(KVM_XEN_HVM_SET_ATTR, KVMIO, 0xc9, kvm_xen_hvm_attr);
    ioctl_iow_nr!(KVM_XEN_VCPU_SET_ATTR, KVMIO, 0xcb, kvm_xen_vcpu_attr);
    ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
    ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
    ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_bindings::kvm_signal_mask);
    ioctl_io_nr!(KVM_SET_TSC_KHZ, KVMIO, 0xa2);
    ioctl_io_nr!(KVM_GET_TSC_KHZ, KVMIO, 0xa3);
}

fn done(ret: libc::c_int) -> Result<u32> {
    u32::try_from(ret).map_err(|_| Error::last())
}

/// Tells KVM how hypercalls arrive: `KVM_XEN_HVM_CONFIG` on the VM.
///
/// # Errors
/// `EINVAL` for flags this KVM does not know, `ENOTTY` without CONFIG_KVM_XEN.
pub fn xen_hvm_config(vm: &VmFd, config: &kvm_xen_hvm_config) -> Result<()> {
    // SAFETY: `config` is the structure this ioctl reads; KVM only reads it,
    // and its blob pointers are zero or owned by the caller for the call.
    done(unsafe { ioctl_with_ref(vm, number::KVM_XEN_HVM_CONFIG(), config) }).map(drop)
}

/// The type of a Xen attribute, a `u32` constant for a `u16` field.
#[expect(clippy::cast_possible_truncation, reason = "all attribute types are below 10")]
pub(super) const fn attribute_type(kind: u32) -> u16 {
    assert!(kind < 10);
    kind as u16
}

/// Sets one VM-wide Xen attribute.
///
/// # Errors
/// KVM's own: `EINVAL` for values out of range, `ENOENT` for unknown types.
pub fn xen_hvm_set_attr(vm: &VmFd, attr: &kvm_xen_hvm_attr) -> Result<()> {
    // SAFETY: `attr` is the structure this ioctl reads, and KVM only reads it.
    done(unsafe { ioctl_with_ref(vm, number::KVM_XEN_HVM_SET_ATTR(), attr) }).map(drop)
}

/// Sets one Xen attribute of a vCPU.
///
/// # Errors
/// As [`xen_hvm_set_attr`].
pub fn xen_vcpu_set_attr(vcpu: &VcpuFd, attr: &kvm_xen_vcpu_attr) -> Result<()> {
    // SAFETY: `attr` is the structure this ioctl reads, and KVM only reads it.
    done(unsafe { ioctl_with_ref(vcpu, number::KVM_XEN_VCPU_SET_ATTR(), attr) }).map(drop)
}

/// The frequency in kHz that new vCPUs get, which is the host's unless set.
///
/// # Errors
/// `EIO` where the host's TSC is unstable, `ENOTTY` on old kernels.
pub fn vm_get_tsc_khz(vm: &VmFd) -> Result<u32> {
    // SAFETY: this ioctl takes no argument.
    done(unsafe { ioctl_with_val(vm, number::KVM_GET_TSC_KHZ(), 0) })
}

/// Sets the frequency of all vCPUs created from now on; the VM-scope call
/// starts no new TSC generation, unlike the one per vCPU.
///
/// # Errors
/// `EINVAL` beyond what the host can scale to, or once vCPUs exist.
pub fn vm_set_tsc_khz(vm: &VmFd, khz: u32) -> Result<()> {
    // SAFETY: this ioctl takes its argument by value.
    done(unsafe { ioctl_with_val(vm, number::KVM_SET_TSC_KHZ(), libc::c_ulong::from(khz)) })
        .map(drop)
}

fn tsc_offset_attr(value: *const u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: value as u64,
    }
}

/// Reads a vCPU's TSC offset: guest TSC = scaled host TSC + offset, modulo 2^64.
///
/// # Errors
/// `ENXIO` or `ENOTTY` on a KVM without the attribute.
pub fn vcpu_tsc_offset(vcpu: &impl AsRawFd) -> Result<u64> {
    let mut offset = 0u64;
    let attr = tsc_offset_attr(&raw mut offset);
    // SAFETY: `attr` is what the ioctl reads; its address is that of `offset`,
    // which lives across the call and is eight bytes as this attribute writes.
    done(unsafe { ioctl_with_ref(vcpu, number::KVM_GET_DEVICE_ATTR(), &attr) })?;
    Ok(offset)
}

/// Sets a vCPU's TSC offset. Setting the value that it has keeps the TSC
/// generation; any other value starts a new one, and a masterclock update.
///
/// # Errors
/// As [`vcpu_tsc_offset`].
pub fn vcpu_set_tsc_offset(vcpu: &impl AsRawFd, offset: u64) -> Result<()> {
    let attr = tsc_offset_attr(&raw const offset);
    // SAFETY: `attr` is what the ioctl reads; its address is that of `offset`,
    // which lives across the call and which KVM only reads.
    done(unsafe { ioctl_with_ref(vcpu, number::KVM_SET_DEVICE_ATTR(), &attr) }).map(drop)
}

/// `struct kvm_signal_mask` with its set of eight bytes, as the kernel has it.
#[repr(C)]
struct SignalMask {
    len: u32,
    sigset: [u8; 8],
}

/// Sets which signals are blocked during KVM_RUN, one bit each from signal 1 on;
/// `None` leaves the thread's own mask in force.
///
/// # Errors
/// None that a valid vCPU could cause.
pub fn vcpu_set_signal_mask(vcpu: &VcpuFd, blocked: Option<u64>) -> Result<()> {
    let mask = blocked.map(|blocked| SignalMask { len: 8, sigset: blocked.to_le_bytes() });
    let address = mask.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: null, or a structure that holds the `len` bytes it names and
    // lives across the call; KVM only reads it.
    done(unsafe { ioctl_with_ptr(vcpu, number::KVM_SET_SIGNAL_MASK(), address) }).map(drop)
}
