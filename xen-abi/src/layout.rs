//! What this crate claims about the C headers, as tables: the input of the header test.
//!
//! The macros that declare a structure or a number also enter it here, so nothing declared with
//! them can escape the comparison. [`MODULES`] holds every table of the crate.

/// The compilations of the C headers in which a claim holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// Same bytes for 64-bit and 32-bit guests.
    Both,
    /// 64-bit guests only (`-m64`).
    Only64,
    /// 32-bit guests only (`-m32`).
    Only32,
    /// No counterpart in the 4.17 headers: newer Xen, another specification, or a value that the
    /// headers give in a comment.
    Unlisted,
}

/// One field of a structure.
#[derive(Clone, Copy, Debug)]
pub struct FieldLayout {
    /// The member designator in C, such as `u.interdomain.port`; `_pad…` where C has none.
    pub c_path: &'static str,
    /// Offset in bytes from the start of the structure.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
}

/// One structure.
#[derive(Clone, Copy, Debug)]
pub struct StructLayout {
    /// The name in this crate.
    pub name: &'static str,
    /// The type in C, such as `struct evtchn_send`.
    pub c_type: &'static str,
    /// Where it holds.
    pub width: Width,
    /// Size in bytes.
    pub size: usize,
    /// Every field, padding included, in order.
    pub fields: &'static [FieldLayout],
}

/// One constant.
#[derive(Clone, Copy, Debug)]
pub struct Number {
    /// The name in this crate.
    pub name: &'static str,
    /// An integer constant expression in C.
    pub c_expr: &'static str,
    /// Where it holds.
    pub width: Width,
    /// The value.
    pub value: i128,
}

/// The claims of one module.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// The module's name in this crate.
    pub name: &'static str,
    /// The header below `/usr/include/xen/` that it mirrors; empty when it mirrors none of Xen's.
    pub header: &'static str,
    /// Its constants.
    pub numbers: &'static [Number],
    /// Its structures.
    pub structs: &'static [StructLayout],
}

/// Every claim of this crate.
pub const MODULES: &[Module] = &[
    crate::arch_x86::MODULE,
    crate::callback::MODULE,
    crate::console::MODULE,
    crate::cpuid::MODULE,
    crate::elfnote::MODULE,
    crate::errno::MODULE,
    crate::event_channel::MODULE,
    crate::features::MODULE,
    crate::grant_table::MODULE,
    crate::handover::MODULE,
    crate::hvm_op::MODULE,
    crate::hvm_params::MODULE,
    crate::hvm_start_info::MODULE,
    crate::hvm_vcpu::MODULE,
    crate::hypercall::MODULE,
    crate::memory::MODULE,
    crate::nmi::MODULE,
    crate::physdev::MODULE,
    crate::sched::MODULE,
    crate::vcpu::MODULE,
    crate::version::MODULE,
    crate::vmclock::MODULE,
    crate::xen::MODULE,
    crate::xenbus::MODULE,
    crate::xs_wire::MODULE,
];
