//! Promise: whatever happens while a guest moves (it ends, the move is cancelled, either
//! side is killed at any of its messages), there is one guest afterwards, or none where
//! its own process was killed or it ended by itself; it finds its clocks right, can be
//! moved again, and each process ends with its one line.
//!
//! Needs a KVM with all of KVM_XEN, and beside the test the guest `handover`:
//! `scripts/test` runs it in the nested host.

#[path = "migrate_tls/certs.rs"]
#[expect(dead_code, reason = "the bad ones are for tests/migrate_tls.rs")]
mod certs;
mod moves {
    pub mod process;
    pub mod relay;
}

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use certs::{Fault, authority};
use moves::process::{Process, eventually};
use moves::relay::{Point, Relay};

/// Enough memory with contents that no buffer of a socket takes it.
const NOISE: usize = 2 << 20;
/// It is being copied, and the guest runs.
const COPYING: Point = Point::Memory(256 << 10);

/// What one move needs, in a directory that goes away with it.
struct Scene(tempfile::TempDir);

impl Scene {
    fn new() -> Self {
        let scene = Self(tempfile::tempdir().expect("a directory"));
        fs::write(scene.0.path().join("clock"), kvm_xen::vmm::demo_guest::CLOCK).expect("a file");
        let mut state = 1u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_le_bytes()
        };
        let bytes: Vec<u8> = std::iter::repeat_with(&mut noise).flatten().take(NOISE).collect();
        fs::write(scene.0.path().join("noise"), bytes).expect("a file");
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("a plain name").to_owned()
    }

    /// A source, up to the first line of its guest.
    fn source(&self, kernel: &Path, cmdline: &str) -> Process {
        let (kernel, noise, api) =
            (kernel.to_str().expect("plain"), self.text("noise"), self.text("api"));
        let arguments = [
            "run",
            "--memory",
            "64M",
            "--cpus",
            "2",
            "--kernel",
            kernel,
            "--initrd",
            &noise,
            "--cmdline",
            cmdline,
            "--api-socket",
            &api,
        ];
        let source = Process::start(self.0.path(), "source", &arguments);
        source.says("KVMXEN start ");
        source
    }

    fn clock(&self, seconds: u32) -> Process {
        self.source(&self.path("clock"), &format!("seconds={seconds} strict=1"))
    }

    /// A destination, once it listens. Its control socket is `api-{name}`.
    fn destination(&self, name: &str, time: &str) -> Process {
        let (at, api) = (format!("unix:{}", self.text(name)), self.text(&format!("api-{name}")));
        let arguments = ["receive", &at, "--time", time, "--api-socket", &api];
        let destination = Process::start(self.0.path(), &format!("at-{name}"), &arguments);
        eventually("the destination listens", || self.path(name).exists());
        destination
    }

    /// Asks the process with this control socket to move its guest there.
    fn migrate(&self, api: &str, name: &str, options: &[&str]) -> Process {
        let (api, to) = (self.text(api), format!("unix:{}", self.text(name)));
        let arguments = [&["migrate", &api, &to], options].concat();
        Process::start(self.0.path(), &format!("to-{name}"), &arguments)
    }

    fn cancel(&self) -> Process {
        Process::start(self.0.path(), "cancel", &["migrate", &self.text("api"), "--cancel"])
    }

    /// A relay to a new destination, at which a move stands at `point`.
    fn held_at(&self, point: Point, options: &[&str]) -> (Relay, Process, Process) {
        let destination = self.destination("back", "advance");
        let relay = Relay::start(&self.path("front"), &self.path("back"), point);
        let migrate = self.migrate("api", "front", options);
        relay.wait_held();
        (relay, destination, migrate)
    }
}

/// In the nested host it lies beside the test.
fn handover() -> &'static Path {
    let guest = Path::new("./handover");
    assert!(guest.exists(), "no ./handover: build it with cargo build --release -p guests");
    guest
}

const REQUIRE: [&str; 2] = ["--handover", "require"];

/// The guest of a handover came to its end: with clocks that never went back, and so
/// many moves and times that it was let go where it was.
fn handed_over(process: &Process, moves: u32, stays: u32) {
    let out = process.out();
    let wanted = format!(
        " moves={moves} stays={stays} count={moves} backward_tsc=0 backward_system_time=0 \
         backward_mono=0 backward_tai=0 wrong_at_line=0"
    );
    assert!(out.contains(&wanted), "no {wanted:?}: {}", process.all());
    assert!(out.contains("KVMXEN handover-checks") && out.contains(" failed=0"), "{out}");
}

#[test]
#[ignore = "needs a KVM with KVM_XEN"]
fn while_copied_a_guest_ends_and_that_ends_its_move() {
    let scene = Scene::new();
    for (guest, cmdline, end, status) in [
        (scene.path("clock"), "seconds=3", "KVMXEN end verdict=exact", 0),
        // It waits for a move in vain, which is a failure of it, and crashes.
        (handover().to_owned(), "moves=1 seconds=3", "KVMXEN handover-checks ", 3),
    ] {
        let mut source = scene.source(&guest, cmdline);
        let (relay, mut destination, mut migrate) = scene.held_at(COPYING, &[]);
        source.says(end);
        let took = source.ends(status);
        assert!(took < Duration::from_secs(8), "it took {took:?} to end");
        let said = source.err();
        let mut lines = said.lines();
        let first = lines.next();
        assert_eq!(first, Some("kvm-xen: the guest has not moved: it ended first"), "{said}");
        assert!((lines.count() == 1) == (status == 3), "{said}");
        migrate.ends_with_a_line(1, "the guest has not moved: it ended first");
        relay.cut();
        destination.ends_with_a_line(1, "the guest did not come: its source gave up, ended");
        assert_eq!(destination.out(), "");
        fs::remove_file(scene.path("front")).expect("the relay's");
    }
}

#[test]
#[ignore = "needs a KVM with KVM_XEN"]
fn while_copied_a_guest_is_cancelled_goes_on_and_moves_later() {
    let scene = Scene::new();
    let mut source = scene.clock(12);
    scene.cancel().ends_with_a_line(1, "there is no migration to cancel");
    let (relay, mut destination, mut migrate) = scene.held_at(COPYING, &[]);
    let mut cancel = scene.cancel();
    let took = cancel.ends(0);
    assert!(took < Duration::from_secs(5), "cancelled after {took:?}");
    assert_eq!(cancel.out(), "cancelled: the guest goes on where it is\n");
    migrate.ends_with_a_line(1, "the guest has not moved: cancelled");
    relay.cut();
    destination.ends_with_a_line(1, "the guest did not come");
    assert_eq!(destination.out(), "");
    scene.cancel().ends_with_a_line(1, "there is no migration to cancel");
    let mut next = scene.destination("next", "advance");
    let mut migrate = scene.migrate("api", "next", &[]);
    migrate.ends(0);
    assert!(migrate.out().contains("migrated: "), "{}", migrate.all());
    source.ends(0);
    assert!(!source.out().contains("KVMXEN end"), "{}", source.all());
    next.ends(0);
    assert!(next.out().contains("KVMXEN end verdict=exact"), "{}", next.all());
}

/// The source is killed at `point`; whether the destination has the guest then.
fn source_killed(point: Point, there: bool) {
    let scene = Scene::new();
    let mut source = scene.source(handover(), "moves=1");
    let (relay, mut destination, _migrate) = scene.held_at(point, &REQUIRE);
    if point != Point::Runs {
        // Not while the source could still go on with it.
        assert_eq!(destination.out(), "", "{point:?}");
    }
    source.kill();
    relay.cut();
    if there {
        destination.ends(0);
        handed_over(&destination, 1, 0);
    } else {
        destination.ends_with_a_line(1, "the guest did not come");
        assert_eq!(destination.out(), "", "{point:?}");
    }
    assert!(!source.out().contains("KVMXEN handover "), "two: {}", source.all());
}

/// The destination is killed at `point`: the source's guest goes on, gathered or not,
/// and moves to another one.
fn destination_killed(point: Point, gathered: bool) {
    let scene = Scene::new();
    let stays = u32::from(gathered);
    let mut source = scene.source(handover(), &format!("moves=1 stays={stays}"));
    let (relay, mut destination, mut migrate) = scene.held_at(point, &REQUIRE);
    if point == Point::Runs {
        // It stands at the source as long as the other process lives.
        destination.says("KVMXEN moved moves=1 stays=0 ");
        assert!(!source.out().contains("KVMXEN moved"), "two: {}", source.all());
    }
    destination.kill();
    relay.cut();
    migrate.ends_with_a_line(1, "the guest has not moved: ");
    if gathered {
        source.says("KVMXEN moved moves=0 stays=1 count=0 ");
    }
    let mut next = scene.destination("next", "advance");
    scene.migrate("api", "next", &REQUIRE).ends(0);
    source.ends(0);
    assert!(!source.out().contains("KVMXEN handover "), "two: {}", source.all());
    next.ends(0);
    handed_over(&next, 1, stays);
}

#[test]
#[ignore = "needs a KVM with KVM_XEN"]
fn killed_at_any_message_there_is_one_guest_the_source() {
    let sent = [Point::Ready, Point::Go, Point::Runs].map(|point| (point, true));
    for (point, there) in [(COPYING, false), (Point::Last, false)].into_iter().chain(sent) {
        source_killed(point, there);
    }
}

#[test]
#[ignore = "needs a KVM with KVM_XEN"]
fn killed_at_any_message_there_is_one_guest_the_destination() {
    destination_killed(COPYING, false);
    for point in [Point::Last, Point::Ready, Point::Go, Point::Runs] {
        destination_killed(point, true);
    }
}

/// The guest goes on elsewhere so many times, after it has stood for `gap` each time and
/// with its clocks frozen, and comes to its end. What it printed, wherever it ran.
fn frozen(scene: &Scene, mut from: Process, moves: u32, gap: Duration) -> String {
    let (mut api, mut out) = ("api".to_owned(), String::new());
    for n in 0..moves {
        let [front, back] = ["front", "back"].map(|name| format!("{name}{n}"));
        let destination = scene.destination(&back, "freeze");
        let relay = Relay::start(&scene.path(&front), &scene.path(&back), Point::Last);
        let mut migrate = scene.migrate(&api, &front, &[]);
        relay.wait_held();
        std::thread::sleep(gap);
        relay.release();
        migrate.ends(0);
        from.ends(0);
        out += &from.out();
        (from, api) = (destination, format!("api-{back}"));
    }
    from.ends(0);
    out + &from.out()
}

#[test]
#[ignore = "needs a KVM with KVM_XEN"]
fn frozen_clocks_go_on_from_where_they_stopped() {
    let scene = Scene::new();
    let began = Instant::now();
    let gap = Duration::from_secs(2);
    let out = frozen(&scene, scene.clock(10), 3, gap);
    assert!(out.contains("KVMXEN end verdict=exact"), "{out}");
    // Its own seconds, and those in which it stood.
    let took = began.elapsed();
    assert!(took > Duration::from_secs(10) + 3 * gap, "it ended after {took:?}");
}

/// A Linux whose agent holds five clocks against each other, beside the test.
#[test]
#[ignore = "needs a KVM with KVM_XEN, and a kernel"]
fn five_frozen_clocks_of_a_linux_have_no_jump() {
    let scene = Scene::new();
    let arguments = [
        "run",
        "--kernel",
        "./vmlinuz",
        "--initrd",
        "./guest.cpio",
        "--memory",
        "256M",
        "--cpus",
        "2",
        "--api-socket",
        &scene.text("api"),
        "--cmdline",
        "console=ttyS0 quiet panic=-1 agent.seconds=16 agent.jumps=1",
    ];
    let source = Process::start(scene.0.path(), "source", &arguments);
    source.says("KVMXEN vdso ");
    // A busy machine keeps the guest waiting too, but not for so long.
    let gap = Duration::from_secs(5);
    let out = frozen(&scene, source, 2, gap);
    let number = |line: &str, name: &str| -> i64 {
        let words = line.split_whitespace();
        let found = words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')).next();
        found.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {name}: {line}"))
    };
    let lines = |what: &str| out.lines().filter(|line| line.contains(what)).collect::<Vec<_>>();
    let (spins, five) = (lines("KVMXEN spin cpus="), lines("KVMXEN five "));
    assert_eq!((spins.len(), five.len()), (1, 5), "{out}");
    assert_eq!((number(spins[0], "backward"), number(spins[0], "cross_backward")), (0, 0), "{out}");
    for clock in five {
        assert_eq!(number(clock, "backward"), 0, "{clock}");
        let longest = Duration::from_nanos(number(clock, "longest_ns").unsigned_abs());
        assert!(longest < gap, "{out}");
    }
}

#[test]
#[ignore = "needs a KVM with KVM_XEN"]
fn a_guest_is_handed_over_by_tls() {
    let scene = Scene::new();
    let authority = authority();
    authority.write(&scene.path("tls"), &authority.identity(Fault::None));
    let tls = scene.text("tls");
    let mut from = scene.source(handover(), "moves=2");
    let mut api = scene.text("api");
    for (n, at) in ["tcp:127.0.0.1:7100", "tcp:[::1]:7101"].into_iter().enumerate() {
        let next = scene.text(&format!("api{n}"));
        let receive = ["receive", at, "--tls-dir", &tls, "--api-socket", &next];
        let destination = Process::start(scene.0.path(), &format!("tls{n}"), &receive);
        let mut tries = 0;
        loop {
            let arguments = [&["migrate", &api, at, "--tls-dir", &tls], &REQUIRE[..]].concat();
            let mut migrate = Process::start(scene.0.path(), &format!("to-tls{n}"), &arguments);
            eventually("an answer", || !migrate.out().is_empty() || !migrate.err().is_empty());
            if migrate.err().contains("start kvm-xen receive there") && tries < 20 {
                // It does not listen yet.
                tries += 1;
                continue;
            }
            migrate.ends(0);
            assert!(migrate.out().contains("gathered its vCPUs"), "{}", migrate.all());
            break;
        }
        from.ends(0);
        assert!(!from.out().contains("KVMXEN handover "), "two: {}", from.all());
        (from, api) = (destination, next);
    }
    from.ends(0);
    handed_over(&from, 2, 0);
}
