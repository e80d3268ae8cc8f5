//! Lets a vCPU serve what KVM has asked of it without running its guest.
//!
//! Every vCPU that is created while the masterclock is off asks for an update
//! that would switch it on, and serves that on its first way into the guest:
//! the second vCPU would do so, and stop the first, when the guest is long
//! running. So the first vCPU goes in before the others exist. It meets a
//! pending signal after its requests are served and before its first
//! instruction (`vcpu_enter_guest` in Linux `arch/x86/kvm/x86.c`), and comes
//! out. The others find the masterclock on and ask for nothing.

#![expect(unsafe_code, reason = "signal sets and raising a signal")]

use std::mem::MaybeUninit;
use std::ptr;

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::errno::{Error, Result};
use vmm_sys_util::signal::SIGRTMIN;

use super::ioctls::vcpu_set_signal_mask;

/// The calling thread's signal mask, put back when dropped.
struct Masked {
    before: libc::sigset_t,
}

fn set_of_kick() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set that it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised just above.
    let mut set = unsafe { set.assume_init() };
    // SAFETY: `set` is a valid set and SIGRTMIN a valid signal.
    unsafe { libc::sigaddset(&raw mut set, SIGRTMIN()) };
    set
}

impl Masked {
    fn new() -> Self {
        let blocked = set_of_kick();
        let mut before = blocked;
        // SAFETY: both are valid sets that live across the call.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, &raw mut before) };
        Self { before }
    }
}

impl Drop for Masked {
    fn drop(&mut self) {
        let set = set_of_kick();
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // Takes the signal back, so that nobody's handler sees it.
        // SAFETY: the set and the time live across the call; no info is asked.
        unsafe { libc::sigtimedwait(&raw const set, ptr::null_mut(), &raw const none) };
        // SAFETY: `before` is what the thread had.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut())
        };
    }
}

/// Serves `vcpu`'s requests, on its own thread. Not one instruction of its guest
/// is executed. A local APIC timer that has expired and was not delivered yet
/// becomes an interrupt in the local APIC, where `KVM_GET_LAPIC` shows it.
///
/// # Errors
/// Where KVM takes no signal mask, or the vCPU came out for another reason.
pub fn serve_requests(vcpu: &mut VcpuFd) -> Result<()> {
    let masked = Masked::new();
    // In KVM_RUN nothing is blocked, so that the pending signal counts there.
    vcpu_set_signal_mask(vcpu, Some(0))?;
    // SAFETY: no preconditions.
    let this = unsafe { libc::pthread_self() };
    // SAFETY: this thread is alive, and it blocks the signal.
    unsafe { libc::pthread_kill(this, SIGRTMIN()) };
    let came_out = match vcpu.run() {
        Ok(VcpuExit::Intr) => Ok(()),
        Ok(_) => Err(Error::new(libc::EBUSY)),
        Err(error) if error.errno() == libc::EINTR => Ok(()),
        Err(error) => Err(error),
    };
    drop(masked);
    vcpu_set_signal_mask(vcpu, None)?;
    came_out
}
