//! The callback GSI: a level that follows vCPU 0's pending flag.
//!
//! Xen looks at that flag when the guest ends the interrupt, and takes the line
//! down first if the guest has cleared it. With KVM's interrupt controllers the
//! end does not come out to us: a line that is up is an interrupt again at once,
//! and the guest, which has nothing pending, never leaves its handler. So the
//! line is an irqfd with a resample descriptor: KVM takes it down at the end of
//! the interrupt, before it looks at the level, and tells us; we put it up
//! again if events are pending.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::xen::{CallbackVia, Domain};

/// The line, if the guest's callback is one.
pub(super) struct CallbackGsi {
    vm: Arc<VmFd>,
    domain: OnceLock<Weak<Domain>>,
    line: Mutex<Option<Line>>,
}

struct Line {
    gsi: u32,
    /// A write puts the line up.
    trigger: EventFd,
    ended: Arc<Ended>,
}

/// What the thread that hears of ended interrupts shares with us.
struct Ended {
    fd: EventFd,
    stopped: AtomicBool,
}

impl CallbackGsi {
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, domain: OnceLock::new(), line: Mutex::new(None) }
    }

    /// Whose pending flag the line follows.
    pub(super) fn follow(&self, domain: Weak<Domain>) {
        // Started once.
        let _ = self.domain.set(domain);
    }

    /// The guest chose its callback.
    pub(super) fn choose(&self, via: CallbackVia) {
        let mut line = self.lock();
        match via {
            CallbackVia::Gsi(gsi) if line.as_ref().is_some_and(|line| line.gsi == gsi) => {}
            CallbackVia::Gsi(gsi) => {
                self.drop_line(&mut line);
                match self.connect(gsi) {
                    Ok(connected) => *line = Some(connected),
                    Err(error) => tracing::debug!(
                        gsi, %error,
                        "no irqfd for the callback GSI; the guest may see it more than once"
                    ),
                }
            }
            CallbackVia::None | CallbackVia::PciIntx(_) | CallbackVia::Vector(_) => {
                self.drop_line(&mut line);
            }
        }
    }

    /// Puts the level of `gsi` up or down. Down it also goes by itself, at the
    /// end of each interrupt.
    pub(super) fn set(&self, gsi: u32, asserted: bool) {
        let result = match &*self.lock() {
            Some(line) if line.gsi == gsi && asserted => {
                line.trigger.write(1).map_err(|error| error.to_string())
            }
            Some(line) if line.gsi == gsi => Ok(()),
            _ => self.vm.set_irq_line(gsi, asserted).map_err(|error| error.to_string()),
        };
        if let Err(error) = result {
            tracing::debug!(gsi, asserted, %error, "an interrupt line could not be set");
        }
    }

    /// Lets the line and its thread go.
    pub(super) fn stop(&self) {
        self.drop_line(&mut self.lock());
    }

    fn connect(&self, gsi: u32) -> std::io::Result<Line> {
        let trigger = EventFd::new(EFD_NONBLOCK)?;
        let ended = Arc::new(Ended { fd: EventFd::new(0)?, stopped: AtomicBool::new(false) });
        self.vm.register_irqfd_with_resample(&trigger, &ended.fd, gsi)?;
        let domain = self.domain.get().cloned().unwrap_or_default();
        let heard = Arc::clone(&ended);
        let thread = std::thread::Builder::new().name("callback-gsi".to_owned());
        let spawned = thread.spawn(move || heard.serve(&domain));
        let line = Line { gsi, trigger, ended };
        match spawned {
            Ok(_) => Ok(line),
            Err(error) => {
                self.disconnect(&line);
                Err(error)
            }
        }
    }

    fn drop_line(&self, line: &mut Option<Line>) {
        if let Some(line) = line.take() {
            self.disconnect(&line);
        }
    }

    fn disconnect(&self, line: &Line) {
        // KVM takes the level down with it.
        if let Err(error) = self.vm.unregister_irqfd(&line.trigger, line.gsi) {
            tracing::debug!(gsi = line.gsi, %error, "an irqfd could not be taken back");
        }
        line.ended.stopped.store(true, Ordering::Release);
        // Wakes the thread, which ends. A write to an eventfd of 0 succeeds.
        let _ = line.ended.fd.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Line>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ended {
    fn serve(&self, domain: &Weak<Domain>) {
        loop {
            match self.fd.read() {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            }
            // Acquire: partner of the Release before the write that woke us.
            let Some(domain) = domain.upgrade() else { return };
            if self.stopped.load(Ordering::Acquire) {
                return;
            }
            domain.callback_gsi_ended();
        }
    }
}

impl Drop for CallbackGsi {
    fn drop(&mut self) {
        self.stop();
    }
}
