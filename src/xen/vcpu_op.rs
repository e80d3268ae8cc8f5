//! `vcpu_op`: what a guest asks about and of its vCPUs.

use std::sync::atomic::Ordering;

use vm_memory::{GuestAddress, GuestMemoryBackend};
use xen_abi::errno::Errno;
use xen_abi::vcpu::{
    VCPU_SSHOTTMR_FUTURE, VCPUOP_DOWN, VCPUOP_GET_PHYSID, VCPUOP_GET_RUNSTATE_INFO,
    VCPUOP_INITIALISE, VCPUOP_IS_UP, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA,
    VCPUOP_REGISTER_RUNSTATE_PHYS_AREA, VCPUOP_REGISTER_VCPU_INFO,
    VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA, VCPUOP_SEND_NMI,
    VCPUOP_SET_PERIODIC_TIMER, VCPUOP_SET_SINGLESHOT_TIMER, VCPUOP_STOP_PERIODIC_TIMER,
    VCPUOP_STOP_SINGLESHOT_TIMER, VCPUOP_UP, VcpuRegisterRunstateMemoryArea,
    VcpuRegisterTimeMemoryArea, VcpuRegisterVcpuInfo, VcpuSetPeriodicTimer, VcpuSetSingleshotTimer,
    VcpuSetSingleshotTimer32,
};

use super::domain::{Domain, lock, read};
use super::runstate::narrow;
use super::shared_info::{self, VCPU_INFO_SIZE};
use super::timer::{MAX_PERIOD_NS, MIN_PERIOD_NS};
use super::{Call, Reply, vcpu_power};
use crate::pages::{RunstateArea, Width};

const PAGE_SIZE: u64 = 4096;
/// `sizeof(struct vcpu_time_info)`.
const TIME_INFO_SIZE: u64 = 32;

/// `vcpu_op` on vCPU `vcpuid`.
///
/// # Errors
/// `ENOENT` for a vCPU that is not there, `ENOSYS` for an unknown command,
/// otherwise as each command states.
pub(super) fn op(call: &mut Call<'_>, cmd: u64, vcpuid: u64, arg: u64) -> Reply {
    let domain = call.domain;
    let vcpu = u32::try_from(vcpuid).map_err(|_| Errno::ENOENT)?;
    let state = domain.vcpu(vcpu).ok_or(Errno::ENOENT)?;
    domain.seen_running(call.vcpu);
    match u32::try_from(cmd).map_err(|_| Errno::ENOSYS)? {
        VCPUOP_INITIALISE => vcpu_power::initialise(call, vcpu, arg),
        VCPUOP_UP => vcpu_power::up(domain, vcpu),
        VCPUOP_DOWN => vcpu_power::down(domain, vcpu),
        VCPUOP_IS_UP => Ok(i64::from(state.up.load(Ordering::SeqCst))),
        VCPUOP_GET_RUNSTATE_INFO => {
            let now_ns = domain.clock.system_time_ns();
            let info = lock(&state.runstate).info_until(now_ns);
            match call.width {
                Width::Bits64 => call.write(arg, &info)?,
                Width::Bits32 => call.write(arg, &narrow(&info))?,
            }
            Ok(0)
        }
        VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA => {
            let linear = read_linear(call, arg)?;
            register_runstate(call, vcpu, linear)
        }
        VCPUOP_REGISTER_RUNSTATE_PHYS_AREA if has_physical_areas(domain) => {
            let args: VcpuRegisterRunstateMemoryArea = call.read(arg)?;
            register_runstate_phys(call, vcpu, args.addr)
        }
        VCPUOP_SET_PERIODIC_TIMER => {
            let args: VcpuSetPeriodicTimer = call.read(arg)?;
            if !(MIN_PERIOD_NS..=MAX_PERIOD_NS).contains(&args.period_ns) {
                return Err(Errno::EINVAL);
            }
            let now_ns = domain.clock.system_time_ns();
            domain.change_timers(vcpu, |timers| timers.set_periodic(args.period_ns, now_ns));
            Ok(0)
        }
        VCPUOP_STOP_PERIODIC_TIMER => {
            domain.change_timers(vcpu, |timers| timers.set_periodic(0, 0));
            Ok(0)
        }
        VCPUOP_SET_SINGLESHOT_TIMER => set_singleshot(call, vcpu, arg),
        VCPUOP_STOP_SINGLESHOT_TIMER => {
            if vcpu != call.vcpu {
                return Err(Errno::EINVAL);
            }
            domain.change_timers(vcpu, |timers| timers.stop_singleshot());
            Ok(0)
        }
        VCPUOP_REGISTER_VCPU_INFO => register_vcpu_info(call, vcpu, arg),
        VCPUOP_SEND_NMI => {
            if arg != 0 {
                return Err(Errno::EINVAL);
            }
            domain.send_nmi(vcpu).map(|()| 0)
        }
        // Only a vCPU that is pinned to a physical one has a physical number.
        VCPUOP_GET_PHYSID => Err(Errno::EINVAL),
        VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA => {
            let linear = read_linear(call, arg)?;
            register_time(call, vcpu, linear)
        }
        VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA if has_physical_areas(domain) => {
            let args: VcpuRegisterTimeMemoryArea = call.read(arg)?;
            register_time_phys(call, vcpu, args.addr)
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// Areas by physical address came with Xen 4.18.
fn has_physical_areas(domain: &Domain) -> bool {
    domain.config.xen_version >= (4, 18)
}

/// The one field of both `register_*_memory_area` structures: a pointer, of
/// which a 32-bit caller fills in the low half only.
fn read_linear(call: &mut Call<'_>, arg: u64) -> Result<u64, Errno> {
    match call.width {
        Width::Bits64 => call.read(arg),
        Width::Bits32 => call.read::<u32>(arg).map(u64::from),
    }
}

fn set_singleshot(call: &mut Call<'_>, vcpu: u32, arg: u64) -> Reply {
    if vcpu != call.vcpu {
        return Err(Errno::EINVAL);
    }
    let (deadline_ns, flags) = match call.width {
        Width::Bits64 => {
            let args: VcpuSetSingleshotTimer = call.read(arg)?;
            (args.timeout_abs_ns, args.flags)
        }
        Width::Bits32 => {
            let args: VcpuSetSingleshotTimer32 = call.read(arg)?;
            (args.timeout_abs_ns, args.flags)
        }
    };
    let now_ns = call.domain.clock.system_time_ns();
    if flags & VCPU_SSHOTTMR_FUTURE != 0 && deadline_ns < now_ns {
        return Err(Errno::ETIME);
    }
    call.domain.change_timers(vcpu, |timers| timers.set_singleshot(deadline_ns));
    Ok(0)
}

/// `VCPUOP_register_vcpu_info`: `ENXIO` for an area that is misaligned or crosses
/// its page; `EINVAL` for one that is not RAM, for a second registration, and for
/// another vCPU that is up.
fn register_vcpu_info(call: &mut Call<'_>, vcpu: u32, arg: u64) -> Reply {
    let args: VcpuRegisterVcpuInfo = call.read(arg)?;
    let domain = call.domain;
    let offset = u64::from(args.offset);
    let align = match read(&domain.layout).width {
        Width::Bits64 => 8,
        Width::Bits32 => 4,
    };
    if !offset.is_multiple_of(align) || offset > PAGE_SIZE - VCPU_INFO_SIZE {
        return Err(Errno::ENXIO);
    }
    let up = domain.vcpu(vcpu).is_some_and(|state| state.up.load(Ordering::Relaxed));
    if vcpu != call.vcpu && up {
        return Err(Errno::EINVAL);
    }
    let page = page_address(args.mfn).ok_or(Errno::EINVAL)?;
    shared_info::register_vcpu_info(domain, vcpu, page + offset)?;
    domain.mark_all_pending(vcpu);
    Ok(0)
}

fn page_address(gfn: u64) -> Option<u64> {
    (gfn < 1 << 40).then_some(gfn << 12)
}

/// The runstate area may cross a page: Xen copies to a virtual address. It
/// translates that at every update; here it is translated once, as the areas
/// of every known guest are mapped for good, and fails at once if it is not.
fn register_runstate(call: &mut Call<'_>, vcpu: u32, linear: u64) -> Reply {
    if linear == 0 {
        return call.domain.place_runstate(vcpu, None).map(|()| 0);
    }
    let size = runstate_size(read(&call.domain.layout).width);
    let last = linear.checked_add(size - 1).ok_or(Errno::EFAULT)?;
    let first = call.translate(linear)?;
    let second = match last / PAGE_SIZE == linear / PAGE_SIZE {
        true => None,
        false => Some(call.translate(last - last % PAGE_SIZE)?),
    };
    place_runstate(call, vcpu, first, second, false)
}

fn place_runstate(
    call: &Call<'_>,
    vcpu: u32,
    first: GuestAddress,
    second: Option<GuestAddress>,
    physical: bool,
) -> Reply {
    // By virtual address in the domain's layout, by physical in the caller's.
    let layout = if physical { call.width } else { read(&call.domain.layout).width };
    let area = RunstateArea::new(layout, first, second).map_err(|_| Errno::EINVAL)?;
    call.domain.place_runstate(vcpu, Some((area, physical))).map(|()| 0)
}

/// `EINVAL` where no RAM lies, `ENXIO` for an area that is misaligned or
/// crosses its page; all ones removes it.
fn register_runstate_phys(call: &Call<'_>, vcpu: u32, gpa: u64) -> Reply {
    if gpa == u64::MAX {
        return call.domain.place_runstate(vcpu, None).map(|()| 0);
    }
    check_physical(call, gpa, runstate_size(call.width))?;
    place_runstate(call, vcpu, GuestAddress(gpa), None, true)
}

/// The secondary time area, by virtual address; 0 removes it.
fn register_time(call: &mut Call<'_>, vcpu: u32, linear: u64) -> Reply {
    if linear == 0 {
        return call.domain.time_area_placed(vcpu, None).map(|()| 0);
    }
    let gpa = call.translate(linear)?.0;
    // A guest maps it into user space by the page: it never crosses one, and
    // the version protocol needs whole words.
    if gpa % 4 != 0 || gpa % PAGE_SIZE > PAGE_SIZE - TIME_INFO_SIZE {
        return Err(Errno::EINVAL);
    }
    call.domain.time_area_placed(vcpu, Some(gpa)).map(|()| 0)
}

/// `sizeof(struct vcpu_runstate_info)`.
fn runstate_size(width: Width) -> u64 {
    match width {
        Width::Bits64 => 48,
        Width::Bits32 => 44,
    }
}

/// An area by physical address: `ENXIO` misaligned or across pages, `EINVAL`
/// where no RAM is.
fn check_physical(call: &Call<'_>, gpa: u64, size: u64) -> Result<(), Errno> {
    let align = match call.width {
        Width::Bits64 => 8,
        Width::Bits32 => 4,
    };
    if !gpa.is_multiple_of(align) || gpa % PAGE_SIZE > PAGE_SIZE - size {
        return Err(Errno::ENXIO);
    }
    let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    let found = call.domain.memory().get_slice(GuestAddress(gpa), size).is_ok();
    found.then_some(()).ok_or(Errno::EINVAL)
}

fn register_time_phys(call: &Call<'_>, vcpu: u32, gpa: u64) -> Reply {
    if gpa == u64::MAX {
        return call.domain.time_area_placed(vcpu, None).map(|()| 0);
    }
    check_physical(call, gpa, TIME_INFO_SIZE)?;
    call.domain.time_area_placed(vcpu, Some(gpa)).map(|()| 0)
}

#[cfg(test)]
mod tests;
