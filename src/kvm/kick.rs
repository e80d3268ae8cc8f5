//! Getting a vCPU thread's attention: out of KVM_RUN by a signal, out of a
//! wait by a condition variable.

#![expect(unsafe_code, reason = "signal handlers and pthread_kill")]

use std::cell::Cell;
use std::ptr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU that this thread runs, or null.
    /// Const-initialised and without a destructor, so a signal handler may read it.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // A signal that lands just before KVM_RUN would be lost; the flag makes
        // that KVM_RUN return at once.
        // SAFETY: the pointer was set by this same thread in `enter` and points
        // into its vCPU's kvm_run mapping, which `leave` outlives. KVM reads the
        // byte only in this thread's KVM_RUN.
        unsafe { flag.write_volatile(1) };
    }
}

#[derive(Debug, Default)]
struct State {
    thread: Option<libc::pthread_t>,
    woken: bool,
}

/// One vCPU's bell.
#[derive(Debug, Default)]
pub struct VcpuKicker {
    state: Mutex<State>,
    rung: Condvar,
}

impl VcpuKicker {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The calling thread will run `vcpu` from now on. Installs the signal
    /// handler of the process, which is the same for all vCPUs.
    ///
    /// # Errors
    /// Where the signal handler can not be installed.
    pub fn enter(&self, vcpu: &mut VcpuFd) -> Result<(), vmm_sys_util::errno::Error> {
        register_signal_handler(SIGRTMIN(), on_kick)?;
        // The default slack of 50 us would make each wait with a deadline late.
        // SAFETY: takes one integer, for this thread, and touches no memory.
        if unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1u64) } != 0 {
            tracing::debug!("timer slack stays at its default");
        }
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        // SAFETY: pthread_self has no preconditions.
        self.lock().thread = Some(unsafe { libc::pthread_self() });
        Ok(())
    }

    /// The calling thread runs no vCPU any more.
    pub fn leave(&self) {
        self.lock().thread = None;
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }

    /// Makes the vCPU leave the guest, or its wait, soon.
    pub fn kick(&self) {
        let mut state = self.lock();
        state.woken = true;
        self.rung.notify_all();
        if let Some(thread) = state.thread {
            // SAFETY: the thread is alive: it takes this lock in `leave` before
            // it ends, and we hold the lock. The signal has a handler.
            unsafe { libc::pthread_kill(thread, SIGRTMIN()) };
        }
    }

    /// Ends the vCPU's wait, if it waits, or its next one.
    pub fn wake(&self) {
        self.lock().woken = true;
        self.rung.notify_all();
    }

    /// Waits for [`VcpuKicker::wake`], a kick, or `timeout`, whichever is first.
    pub fn wait(&self, timeout: Option<Duration>) {
        let mut state = self.lock();
        while !state.woken {
            state = match timeout {
                None => self.rung.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(timeout) => {
                    let (state, result) = self
                        .rung
                        .wait_timeout(state, timeout)
                        .unwrap_or_else(PoisonError::into_inner);
                    if result.timed_out() {
                        return;
                    }
                    state
                }
            };
        }
        state.woken = false;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_wake_before_the_wait_is_not_lost() {
        let kicker = VcpuKicker::default();
        kicker.wake();
        let before = Instant::now();
        kicker.wait(Some(Duration::from_secs(60)));
        assert!(before.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_wait_times_out() {
        let kicker = VcpuKicker::default();
        kicker.wait(Some(Duration::from_millis(1)));
    }

    #[test]
    fn a_kick_without_a_thread_wakes_only() {
        let kicker = VcpuKicker::default();
        kicker.kick();
        kicker.wait(Some(Duration::from_secs(60)));
    }
}
