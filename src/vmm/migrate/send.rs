//! The source: memory in rounds while the guest runs, then the guest stops.

use std::cell::Cell;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::dirty::DirtyLog;
use super::handover::network::{self, Asker, Session};
use super::handover::{self, HandoverError, greet, is_late};
use super::link::{Link, TlsLink};
use super::migration::Migration;
use super::tls::{self, Tls};
use super::{MigrateError, MovePlace, Phase, Progress, TcpAddress, ns};
use crate::kvm::{check_xsave, saved_msrs};
use crate::pages::GuestRam;
use crate::state::{StateError, StateWriter, tag, write_memory, write_pages};
use crate::vmm::exit::ExitLatch;
use crate::vmm::handover::{Asked, HandoverMode};
use crate::vmm::save::{STOP_WITHIN, Savable, SaveError, VmClockSection, call};

const PAGE: u64 = 4096;
/// Rounds before the guest stops whatever is left.
const MOST_ROUNDS: u32 = 12;
/// It stops when the rest takes no longer than this.
const SHORT: Duration = Duration::from_millis(20);
/// The destination's greeting, and one piece of memory on its way.
const PATIENCE: Duration = Duration::from_secs(30);
/// TLS and the greeting of another host.
const GREETED: Duration = Duration::from_secs(10);
/// The same while the guest stands still; making the machine too.
const STOPPED_PATIENCE: Duration = Duration::from_secs(10);
/// How long a migration that is ended, or whose guest ended, goes on.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// All that is sent while the guest stands still, however it trickles.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
/// What the destination says to `GOGO`, before it is asked anew.
const ANSWER: Duration = Duration::from_secs(5);
/// Between two questions where the guest is.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Counts what goes through, and ends a migration that was cancelled, whose guest
/// ended, or that takes too long while the guest stands still.
struct Watched<'a> {
    link: &'a mut Link,
    sent: u64,
    /// From when the guest stands still.
    until: &'a Cell<Option<Instant>>,
    migration: &'a Migration,
    exit: &'a ExitLatch,
}

impl Watched<'_> {
    /// One write, in pieces of [`LOOK_EVERY`]: a destination that takes nothing
    /// must not hold up whoever ends the migration.
    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let began = Instant::now();
        loop {
            if self.migration.check().is_err() || self.exit.is_ending() {
                return Err(io::Error::other("ended"));
            }
            let patience = match self.until.get() {
                Some(until) if Instant::now() > until => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Some(_) => STOPPED_PATIENCE,
                None => PATIENCE,
            };
            match self.link.write(bytes) {
                Err(error) if is_late(&error) && began.elapsed() < patience => {}
                result => return result,
            }
        }
    }
}

impl Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.write_some(bytes)?;
        self.sent += count as u64;
        let sent = self.sent;
        self.migration.change(|progress| progress.sent_bytes = sent);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.link.flush()
    }
}

/// Moves the guest of `source` to `to`, and does `and_then` when it runs there,
/// before anything of it could go on here: end it. What `migration` shows is up
/// to date all the time.
///
/// # Errors
/// [`MigrateError`]: the guest runs here, untouched.
pub fn migrate(
    source: &Savable,
    to: &MovePlace,
    migration: &Migration,
    handover: HandoverMode,
    and_then: impl FnOnce(),
) -> Result<Progress, MigrateError> {
    let began = Instant::now();
    let moved = session().and_then(|session| {
        let mut link = connect(to, session)?;
        rounds(source, (to, session), &mut link, migration, handover, and_then)
            .map_err(|error| explain(error, &mut link, migration))
    });
    let moved = moved.map_err(|error| match source.shared.exit.is_ending() {
        true => MigrateError::Ended,
        false => error,
    });
    migration.change(|progress| progress.total_ns = ns(began.elapsed()));
    match moved {
        Ok(downtime) => {
            migration.change(|progress| {
                (progress.phase, progress.downtime_ns) = (Phase::Done, ns(downtime));
                progress.remaining_bytes = 0;
            });
            Ok(migration.progress())
        }
        Err(error) => {
            migration.failed(&error);
            Err(error)
        }
    }
}

/// A connection that broke: by whom, where that can be known.
fn explain(error: MigrateError, link: &mut Link, migration: &Migration) -> MigrateError {
    let broke = matches!(
        error,
        MigrateError::State(StateError::Io { .. })
            | MigrateError::Save(SaveError::State(StateError::Io { .. }))
    );
    if !broke {
        return error;
    }
    if let Err(cancelled) = migration.check() {
        return cancelled;
    }
    handover::reason(link).map_or(error, MigrateError::Handover)
}

/// A number that no other guest has.
fn session() -> Result<Session, MigrateError> {
    let mut session = Session::default();
    let read =
        std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut session));
    let what = "reading /dev/urandom";
    read.map_err(|error| HandoverError::Io { what, error })?;
    Ok(session)
}

fn connect(to: &MovePlace, session: Session) -> Result<Link, MigrateError> {
    match to {
        MovePlace::Unix(path) => by_socket(path),
        MovePlace::Tcp(address, tls) => by_network(address, tls, session),
    }
}

fn by_socket(path: &Path) -> Result<Link, MigrateError> {
    let at = format!("unix:{}", path.display());
    let mut stream =
        UnixStream::connect(path).map_err(|error| MigrateError::Connect { at, error })?;
    greet(&mut stream, PATIENCE)?;
    Ok(Link::Unix(stream))
}

/// With TLS 1.3 a source learns by the first answer only that it is refused.
fn by_network(at: &TcpAddress, tls: &Tls, session: Session) -> Result<Link, MigrateError> {
    let at_text = || at.to_string();
    let refused =
        |error: &io::Error| MigrateError::Peer { at: at_text(), why: tls::explain(error) };
    let mut link = TlsLink::connect(at, tls, GREETED).map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => MigrateError::Connect { at: at_text(), error },
        _ => refused(&error),
    })?;
    network::offer(&mut link, session, GREETED).map_err(|error| match &error {
        HandoverError::Io { error, .. } => refused(error),
        _ => error.into(),
    })?;
    Ok(Link::Tls(link))
}

fn limit(link: &Link, within: Duration) -> Result<(), MigrateError> {
    let what = "setting a time limit";
    Ok(link.write_within(within).map_err(|error| StateError::Io { what, error })?)
}

/// The guest stands still, and its whole state is sent.
fn hand_over(
    (to, session): (&MovePlace, Session),
    link: &mut Link,
    migration: &Migration,
) -> Result<(), HandoverError> {
    match (link, to) {
        (Link::Tls(link), MovePlace::Tcp(address, tls)) => {
            let asker = Asker {
                connect: &|| TlsLink::connect(address, tls, GREETED),
                taken_back: &|| migration.is_unknown(),
                answer: ANSWER,
                pause: ASK_AGAIN,
            };
            let moved = network::hand_over(link, session, STOPPED_PATIENCE, &asker);
            migration.change(|progress| progress.phase = Phase::Stopped);
            moved
        }
        (Link::Unix(stream), _) => handover::hand_over(stream, STOPPED_PATIENCE),
        (Link::Tls(_), MovePlace::Unix(_)) => Err(HandoverError::Strange("TLS".to_owned())),
    }
}

/// All of it; how long the guest stood still.
fn rounds(
    source: &Savable,
    place: (&MovePlace, Session),
    link: &mut Link,
    migration: &Migration,
    handover: HandoverMode,
    and_then: impl FnOnce(),
) -> Result<Duration, MigrateError> {
    // What can go wrong before the guest is stopped does.
    check_xsave(&source.shared.vm).map_err(SaveError::from)?;
    let indices = saved_msrs(&source.kvm).map_err(call("KVM_GET_MSR_INDEX_LIST"))?;
    limit(link, LOOK_EVERY)?;
    let until = Cell::new(None);
    let memory = source.shared.domain.memory();
    let memory: std::sync::Arc<GuestRam> = std::sync::Arc::new(GuestRam::clone(&memory));
    let log = DirtyLog::start(&source.shared.vm, std::sync::Arc::clone(&memory), &source.slots)?;
    let to = Watched { link, sent: 0, until: &until, migration, exit: &source.shared.exit };
    let mut writer = StateWriter::new(BufWriter::with_capacity(1 << 20, to))?;
    writer.value(tag::MACHINE, 0, &source.machine(&memory))?;
    migration.change(|progress| {
        progress.rounds = 1;
        progress.remaining_bytes = memory.iter().map(GuestMemoryRegion::len).sum();
    });
    let mut round_began = Instant::now();
    let mut pages = write_memory(&mut writer, &memory)?;
    let mut pending = log.take()?;
    for round in 2u32.. {
        migration.check()?;
        let took = round_began.elapsed();
        let rate = per_second(pages * PAGE, took);
        let left = pending.len() as u64 * PAGE;
        let estimate = duration_of(left, rate);
        migration.change(|progress| {
            progress.remaining_bytes = left;
            progress.rate_bytes_per_s = rate;
            progress.estimated_downtime_ns = ns(estimate);
        });
        tracing::debug!(round = round - 1, pages, ?took, left, "a round of memory");
        if estimate <= SHORT || round > MOST_ROUNDS {
            break;
        }
        migration.change(|progress| progress.rounds = round);
        round_began = Instant::now();
        pages = write_pages(&mut writer, &memory, pending)?;
        pending = log.take()?;
    }
    let mut asked = Asked::ask(&source.shared, handover)?;
    migration.check()?;
    migration.change(|progress| progress.handover = asked.outcome);
    if asked.waited() {
        // It ran on for all that time.
        write_pages(&mut writer, &memory, pending)?;
        pending = log.take()?;
    }
    let quiesce = &source.shared.quiesce;
    // Gathered it stands already.
    let stopped = asked.since.unwrap_or_else(Instant::now);
    until.set(stopped.checked_add(STOPPED_WITHIN));
    let kick = || source.shared.kick_all();
    let moved = quiesce.stopped(STOP_WITHIN, kick, |on_each| {
        if source.shared.exit.is_ending() {
            return Err(MigrateError::Ended);
        }
        migration.change(|progress| progress.phase = Phase::Stopped);
        let halted = stopped.elapsed();
        source.shared.platform.hold_timers();
        let sections = source.vcpus(on_each, &indices);
        let vmclock = source.clock_service.seen().map(VmClockSection::from);
        let moved = sections.map_err(MigrateError::from).and_then(|vcpus| {
            source.clock_service.while_still(|| {
                let small = source.small(vmclock)?;
                if !same_regions(&memory, &source.shared.domain.memory()) {
                    return Err(MigrateError::Regions);
                }
                let mut last = log.take()?;
                last.append(&mut pending);
                last.sort_unstable();
                last.dedup();
                let count = last.len();
                write_pages(&mut writer, &memory, last)?;
                source.write_small(&mut writer, &vcpus, &small)?;
                let (buffered, bytes, page_bytes) = writer.finish()?;
                let what = "sending the state";
                let failed = |error| StateError::Io { what, error };
                let to = buffered.into_inner().map_err(|error| failed(error.into_error()))?;
                let written = stopped.elapsed();
                limit(to.link, STOPPED_PATIENCE)?;
                hand_over(place, to.link, migration)?;
                tracing::info!(
                    halted_us = halted.as_micros(),
                    written_us = written.as_micros(),
                    moved_us = stopped.elapsed().as_micros(),
                    last_pages = count,
                    beyond_memory = bytes - page_bytes,
                    guest_tsc = small.stopped.guest_tsc,
                    tsc_offset = source.clock.tsc().offset(),
                    "the guest runs elsewhere"
                );
                Ok(stopped.elapsed())
            })
        });
        if moved.is_ok() {
            asked.gone();
            and_then();
        }
        source.shared.platform.release_timers();
        moved
    });
    moved?
}

fn same_regions(one: &GuestRam, other: &GuestRam) -> bool {
    let regions = |of: &GuestRam| -> Vec<_> {
        of.iter().map(|region| (region.start_addr().raw_value(), region.len())).collect()
    };
    regions(one) == regions(other)
}

/// Bytes a second, at least 1.
fn per_second(bytes: u64, took: Duration) -> u64 {
    let rate = u128::from(bytes) * 1_000_000_000 / took.as_nanos().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX).max(1)
}

fn duration_of(bytes: u64, rate: u64) -> Duration {
    let ns = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}
