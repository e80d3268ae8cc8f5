//! `xen_version`: what the hypervisor says of itself (`version.h`), as Xen
//! answers an ordinary HVM or PVH guest.

use std::mem::offset_of;

use xen_abi::errno::Errno;
use xen_abi::features::{
    XENFEAT_AUTO_TRANSLATED_PHYSMAP, XENFEAT_HVM_CALLBACK_VECTOR, XENFEAT_HVM_SAFE_PVCLOCK,
    XENFEAT_MEMORY_OP_VNODE_SUPPORTED, XENFEAT_NOT_DIRECT_MAPPED, XENFEAT_NR_SUBMAPS,
    XENFEAT_WRITABLE_PAGE_TABLES,
};
use xen_abi::version::{
    CompileInfo, FeatureInfo, PlatformParameters, PlatformParameters32, XEN_CAPABILITIES_INFO_LEN,
    XEN_CHANGESET_INFO_LEN, XEN_EXTRAVERSION_LEN, XENVER_BUILD_ID, XENVER_CAPABILITIES,
    XENVER_CHANGESET, XENVER_COMMANDLINE, XENVER_COMPILE_INFO, XENVER_EXTRAVERSION,
    XENVER_GET_FEATURES, XENVER_GUEST_HANDLE, XENVER_PAGESIZE, XENVER_PLATFORM_PARAMETERS,
    XENVER_VERSION,
};

use super::{Call, DomainConfig, Reply};

/// Follows "4.17" in what guests print: the place for a stable release.
const EXTRAVERSION: &str = ".0-kvm-xen";
const CHANGESET: &str = "unavailable";
/// HVM guests only; the trailing space is Xen's.
const CAPABILITIES: &str = "hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 ";
/// What Xen shows of its command line to those who may not see it.
const DENIED: &[u8] = b"<denied>\0";
/// `HYPERVISOR_VIRT_START` of a 64-bit Xen. To a 32-bit HVM guest it says 0.
const VIRT_START: u64 = 0xffff_8000_0000_0000;
const PAGE_SIZE: i64 = 4096;

/// Features of submap 0. No pirqs: a guest then routes none through event
/// channels. Guest pages are not machine pages.
const FEATURES: u32 = 1 << XENFEAT_WRITABLE_PAGE_TABLES
    | 1 << XENFEAT_AUTO_TRANSLATED_PHYSMAP
    | 1 << XENFEAT_HVM_CALLBACK_VECTOR
    | 1 << XENFEAT_HVM_SAFE_PVCLOCK
    | 1 << XENFEAT_MEMORY_OP_VNODE_SUPPORTED
    | 1 << XENFEAT_NOT_DIRECT_MAPPED;

/// `major << 16 | minor`, as `XENVER_version` and CPUID leaf 1 state it.
pub(super) fn number(config: &DomainConfig) -> u32 {
    let (major, minor) = config.xen_version;
    u32::from(major) << 16 | u32::from(minor)
}

/// Serves `cmd`, an `int`, with its argument at `arg`.
pub(super) fn op(call: &mut Call, cmd: u64, arg: u64) -> Reply {
    let Ok(cmd) = u32::try_from(cmd) else { return Err(Errno::ENOSYS) };
    match cmd {
        XENVER_VERSION => return Ok(i64::from(number(&call.domain.config))),
        XENVER_EXTRAVERSION => call.write(arg, &text::<XEN_EXTRAVERSION_LEN>(EXTRAVERSION))?,
        XENVER_COMPILE_INFO => call.write(arg, &compile_info())?,
        XENVER_CAPABILITIES => call.write(arg, &text::<XEN_CAPABILITIES_INFO_LEN>(CAPABILITIES))?,
        XENVER_CHANGESET => call.write(arg, &text::<XEN_CHANGESET_INFO_LEN>(CHANGESET))?,
        XENVER_PLATFORM_PARAMETERS if call.is_64bit() => {
            call.write(arg, &PlatformParameters { virt_start: VIRT_START })?;
        }
        XENVER_PLATFORM_PARAMETERS => call.write(arg, &PlatformParameters32 { virt_start: 0 })?,
        XENVER_GET_FEATURES => {
            let info: FeatureInfo = call.read(arg)?;
            if info.submap_idx >= XENFEAT_NR_SUBMAPS {
                return Err(Errno::EINVAL);
            }
            let at = arg.wrapping_add(offset_of!(FeatureInfo, submap) as u64);
            call.write(at, &FEATURES)?;
        }
        XENVER_PAGESIZE if arg == 0 => return Ok(PAGE_SIZE),
        XENVER_PAGESIZE => return Err(Errno::EINVAL),
        XENVER_GUEST_HANDLE => {
            let uuid = call.domain.config.uuid;
            call.write(arg, &uuid)?;
        }
        XENVER_COMMANDLINE => call.write_bytes(arg, DENIED)?,
        XENVER_BUILD_ID => return Err(Errno::EPERM),
        _ => return Err(Errno::ENOSYS),
    }
    Ok(0)
}

fn compile_info() -> CompileInfo {
    CompileInfo {
        compiler: text("rustc"),
        compile_by: text("kvm-xen"),
        compile_domain: text(env!("CARGO_PKG_NAME")),
        compile_date: text(concat!("version ", env!("CARGO_PKG_VERSION"))),
    }
}

/// `text` in a field of `N` bytes, padded with NUL, of which at least one ends
/// it: longer text is cut.
fn text<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    let len = text.len().min(N.saturating_sub(1));
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
    field
}

#[cfg(test)]
mod tests;
