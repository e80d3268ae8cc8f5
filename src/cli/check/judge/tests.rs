use super::super::record::{End, Strayed};
use super::*;
use crate::kvm::HypercallMode;

const LIMITS: Limits =
    Limits { late: Duration::from_millis(1_000), realtime: Duration::from_millis(10_000) };

/// What Debian's 6.12 said in the base cell.
const GOOD: &str = "\
KVMXEN init reached
KVMXEN kernel release=6.12.117+deb12-cloud-amd64 cpus=2
KVMXEN clocksource current=xen available=xen,tsc-early
KVMXEN hypervisor type=xen version=4.17.0-kvm-xen
KVMXEN cmdline console=ttyS0 quiet panic=-1 rdinit=/kvm-xen/agent agent.check=1
KVMXEN vdso used=1 gettime_cycles=500 syscall_cycles=4000
KVMXEN spin-cpu cpu=0 reads=1000 backward=0 cross_backward=0 worst_ns=0
KVMXEN spin cpus=2 seconds=3 reads=2000 backward=0 cross_backward=0 worst_ns=0
KVMXEN realtime before_tsc=1 realtime_ns=2 after_tsc=3
KVMXEN sleeps cpu=0 count=24 early=0 worst_early_ns=0 median_late_ns=90000 max_late_ns=400000
KVMXEN sleeps cpu=1 count=24 early=0 worst_early_ns=0 median_late_ns=80000 max_late_ns=300000
KVMXEN ping cpu=1 median_ns=200000
KVMXEN interrupts callfunc=2,0 callfuncsingle=1,3 hyp=300,250 resched=60,50 timer=80,70
KVMXEN idle ms=500 upcalls=40
KVMXEN replug cpu=1
KVMXEN replugged cpu=1 down_ms=20 up_ms=30
KVMXEN spin-again cpus=2 reads=500 backward=0 cross_backward=0 worst_ns=0
KVMXEN events abi=fifo
KVMXEN warn: level=4 Grant table initialized
KVMXEN warn: level=3 PCI: Fatal: No config space access function found
KVMXEN warnings count=2
KVMXEN end mode=PowerOff
[   10.769321] reboot: Power down";

fn good() -> Record {
    Record {
        console: GOOD.lines().map(str::to_owned).collect(),
        messages: Vec::new(),
        end: Some(End {
            powered_off: true,
            text: "the guest powered off".to_owned(),
            guarded: false,
            rewrites: 0,
            deviation_ns: 0,
            wallclock_error_ns: Some(-300),
            agreement: Some(Strayed { samples: 16, strayed_ns: 0, resolution_ns: 90 }),
            realtime_error_ns: Some(-76_284_745),
        }),
        process: Process::Exited,
        took: Duration::from_secs(11),
    }
}

/// The same with a line's text replaced.
fn with(from: &str, to: &str) -> Record {
    assert!(GOOD.contains(from), "{from}");
    Record { console: GOOD.replace(from, to).lines().map(str::to_owned).collect(), ..good() }
}

fn without(topic: &str) -> Record {
    let mut record = good();
    let before = record.console.len();
    record.console.retain(|line| !line.starts_with(&format!("KVMXEN {topic} ")));
    assert!(record.console.len() < before, "{topic}");
    record
}

fn fails(cell: &Cell, record: &Record) -> Vec<&'static str> {
    of(cell, record, Outcome::Fails)
}

fn of(cell: &Cell, record: &Record, outcome: Outcome) -> Vec<&'static str> {
    judge(cell, record, &LIMITS)
        .into_iter()
        .filter(|check| check.outcome == outcome)
        .map(|check| check.name)
        .collect()
}

#[test]
fn a_good_guest_holds_in_all() {
    let checks = judge(&Cell::BASE, &good(), &LIMITS);
    let wrong: Vec<_> = checks.iter().filter(|check| check.outcome != Outcome::Holds).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let names: Vec<&str> = checks.iter().map(|check| check.name).collect();
    let expected = [
        "init",
        "report",
        "hypervisor",
        "clocksource",
        "vCPUs",
        "event channels",
        "vDSO",
        "monotonic",
        "line",
        "clock pages",
        "wallclock page",
        "CLOCK_REALTIME",
        "sleeps not early",
        "sleeps not late",
        "upcalls",
        "timer events",
        "IPIs",
        "idle",
        "hotplug",
        "monotonic after hotplug",
        "kernel log",
        "end",
    ];
    assert_eq!(names, expected);
}

#[test]
fn each_fault_of_the_guest_is_found() {
    let cases = [
        ("type=xen", "type=kvm", vec!["hypervisor"]),
        ("current=xen", "current=tsc", vec!["clocksource"]),
        ("amd64 cpus=2", "amd64 cpus=1", vec!["vCPUs"]),
        ("abi=fifo", "abi=2-level", vec!["event channels"]),
        ("used=1", "used=0", vec!["vDSO"]),
        ("reads=2000 backward=0", "reads=2000 backward=1", vec!["monotonic"]),
        (
            "reads=2000 backward=0 cross_backward=0",
            "reads=2000 backward=0 cross_backward=7",
            vec!["monotonic"],
        ),
        ("spin cpus=2", "spin cpus=1", vec!["monotonic"]),
        ("reads=2000", "reads=0", vec!["monotonic"]),
        ("cpu=1 count=24 early=0", "cpu=1 count=24 early=1", vec!["sleeps not early"]),
        ("max_late_ns=300000", "max_late_ns=1000000001", vec!["sleeps not late"]),
        ("hyp=300,250", "hyp=300,0", vec!["upcalls"]),
        ("timer=80,70", "timer=0,70", vec!["timer events"]),
        ("callfuncsingle=1,3 hyp=300,250 resched=60,50", "hyp=9,9 resched=60,0", vec!["IPIs"]),
        ("upcalls=40", "upcalls=5001", vec!["idle"]),
        (
            "replugged cpu=1 down_ms=20 up_ms=30",
            "error cpu 1: wrote 1, reads 0",
            vec!["hotplug", "agent"],
        ),
        ("spin-again cpus=2", "spin-again cpus=1", vec!["monotonic after hotplug"]),
        (
            "reads=500 backward=0 cross_backward=0",
            "reads=500 backward=0 cross_backward=1",
            vec!["monotonic after hotplug"],
        ),
        ("level=4 Grant table initialized", "level=4 WARNING: CPU: 0 PID: 1", vec!["kernel log"]),
        ("level=4 Grant table initialized", "level=1 anything", vec!["kernel log"]),
        (
            "level=4 Grant table initialized",
            "level=4 clocksource: Marking clocksource 'xen' as unstable",
            vec!["kernel log"],
        ),
        ("KVMXEN end mode=PowerOff\n", "", vec!["report"]),
        ("KVMXEN init reached\n", "", vec!["init"]),
    ];
    for (from, to, expected) in cases {
        assert_eq!(fails(&Cell::BASE, &with(from, to)), expected, "{from} -> {to}");
    }
}

#[test]
fn each_report_that_is_missing_is_found() {
    for (topic, expected) in [
        ("hypervisor", vec!["hypervisor"]),
        ("clocksource", vec!["clocksource"]),
        ("kernel", vec!["vCPUs"]),
        ("vdso", vec!["vDSO"]),
        ("spin", vec!["monotonic"]),
        ("sleeps", vec!["sleeps not early", "sleeps not late"]),
        ("idle", vec!["idle"]),
        ("replugged", vec!["hotplug"]),
        ("spin-again", vec!["monotonic after hotplug"]),
        ("warnings", vec!["kernel log"]),
    ] {
        assert_eq!(fails(&Cell::BASE, &without(topic)), expected, "{topic}");
    }
    let record = without("interrupts");
    assert_eq!(
        of(&Cell::BASE, &record, Outcome::NotAvailable),
        ["upcalls", "timer events", "IPIs"]
    );
}

#[test]
fn each_fault_of_the_machine_is_found() {
    type Fault = (&'static str, fn(&mut End));
    let faults: [Fault; 8] = [
        ("line", |end| end.agreement = None),
        ("line", |end| {
            end.agreement = Some(Strayed { samples: 1, strayed_ns: 1, resolution_ns: 1 });
        }),
        ("clock pages", |end| end.rewrites = 1),
        ("wallclock page", |end| end.wallclock_error_ns = None),
        ("wallclock page", |end| end.wallclock_error_ns = Some(-10_000_000)),
        ("CLOCK_REALTIME", |end| end.realtime_error_ns = None),
        ("CLOCK_REALTIME", |end| end.realtime_error_ns = Some(i64::MIN)),
        ("end", |end| end.powered_off = false),
    ];
    for (expected, fault) in faults {
        let mut record = good();
        record.end.as_mut().map(fault).unwrap();
        assert_eq!(fails(&Cell::BASE, &record), [expected]);
    }
    let guarded = Cell { clock: Clock::Guarded, ..Cell::BASE };
    for (deviation_ns, strayed_ns, expected) in
        [(1_000, 2_000, vec![]), (1_001, 0, vec!["clock pages"]), (0, 2_001, vec!["line"])]
    {
        let mut record = good();
        let end = record.end.as_mut().unwrap();
        (end.guarded, end.deviation_ns) = (true, deviation_ns);
        end.agreement = Some(Strayed { samples: 1, strayed_ns, resolution_ns: 1 });
        assert_eq!(fails(&guarded, &record), expected);
        assert!(fell_to_guarded(&Cell::BASE, &record));
        assert!(!fell_to_guarded(&guarded, &record));
    }
    assert!(!fell_to_guarded(&Cell::BASE, &good()));
}

#[test]
fn a_process_that_breaks_or_hangs_fails() {
    for process in [
        Process::TimedOut(Duration::from_secs(9)),
        Process::Broke("signal 11".to_owned()),
        Process::Exited,
    ] {
        let record = Record {
            process: process.clone(),
            end: None,
            messages: vec!["kvm-xen: last words".to_owned()],
            ..good()
        };
        let checks = judge(&Cell::BASE, &record, &LIMITS);
        let end = checks.last().unwrap();
        assert_eq!((end.name, end.outcome), ("end", Outcome::Fails));
        match process {
            Process::TimedOut(_) => assert_eq!(end.got, "killed after 9 s"),
            Process::Broke(_) => {
                assert!(end.got.contains("signal 11") && end.got.contains("last words"));
            }
            Process::Exited => assert!(end.got.contains("nothing")),
        }
    }
    // Its report was whole and its end too, and yet its process crashed.
    let record = Record { process: Process::Broke("signal 6".to_owned()), ..good() };
    assert_eq!(fails(&Cell::BASE, &record), ["end"]);
}

#[test]
fn cells_want_what_they_are() {
    let tsc = Cell { tsc: true, ..Cell::BASE };
    assert_eq!(fails(&tsc, &good()), ["clocksource"]);
    let mut record = with("current=xen", "current=tsc");
    record.end.as_mut().unwrap().agreement = None;
    assert_eq!(fails(&tsc, &record), Vec::<&str>::new());
    let two_level = Cell { fifo: false, ..Cell::BASE };
    assert_eq!(fails(&two_level, &good()), ["event channels"]);
    let four = Cell { cpus: 4, hypercalls: HypercallMode::PortIo, ..Cell::BASE };
    let failing = fails(&four, &good());
    for name in ["vCPUs", "monotonic", "sleeps not early", "upcalls", "timer events", "hotplug"] {
        assert!(failing.contains(&name), "{name}: {failing:?}");
    }
}

#[test]
fn one_vcpu_needs_no_ipis_and_no_hotplug() {
    let cell = Cell { cpus: 1, ..Cell::BASE };
    let text = GOOD
        .replace("cpus=2", "cpus=1")
        .replace(
            "KVMXEN interrupts callfunc=2,0 callfuncsingle=1,3 hyp=300,250 resched=60,50 \
             timer=80,70",
            "KVMXEN interrupts callfunc=0 hyp=300 resched=0 timer=80",
        )
        .lines()
        .filter(|line| !line.contains("replug") && !line.contains("cpu=1 "))
        .map(str::to_owned)
        .collect();
    let record = Record { console: text, ..good() };
    assert_eq!(fails(&cell, &record), Vec::<&str>::new());
}

#[test]
fn what_a_kernel_lacks_is_not_available() {
    let lacking = [
        (
            "KVMXEN replug cpu=1\n",
            "KVMXEN missing check=hotplug reason: cpu1 has no file `online` in sysfs\n",
            vec!["hotplug"],
        ),
        (
            "KVMXEN warnings count=2",
            "KVMXEN missing check=log reason: /dev/kmsg: none",
            vec!["kernel log"],
        ),
        (
            "KVMXEN ping cpu=1 median_ns=200000",
            "KVMXEN missing check=interrupts reason: /proc/interrupts: No such file",
            vec!["events"],
        ),
        ("abi=fifo", "", vec!["event channels"]),
        ("type=xen", "type=none", vec!["hypervisor"]),
        ("current=xen", "current=none", vec!["clocksource"]),
        ("timer=80,70", "", vec!["timer events"]),
    ];
    for (from, to, expected) in lacking {
        let record = with(from, to);
        assert_eq!(fails(&Cell::BASE, &record), Vec::<&str>::new(), "{from}");
        assert_eq!(of(&Cell::BASE, &record, Outcome::NotAvailable), expected, "{from}");
    }
}

#[test]
fn only_a_broken_kernel_has_faults() {
    for complaint in [
        "level=4 WARNING: CPU: 1 PID: 12 at kernel/time/clocksource.c:1",
        "level=4 Call Trace:",
        "level=0 anything",
        "level=3 rcu: INFO: rcu_sched self-detected stall on CPU",
        "level=3 INFO: task init:1 blocked for more than 120 seconds.",
    ] {
        assert!(is_fault(complaint, "xen"), "{complaint}");
    }
    for complaint in [
        "level=3 PCI: Fatal: No config space access function found",
        "level=3 Spectre V2 : WARNING: Unprivileged eBPF is enabled",
        "level=4 cpu 1 spinlock event irq 35",
        "",
    ] {
        assert!(!is_fault(complaint, "xen"), "{complaint}");
    }
    // As Linux 6.12 and 7.2 say it.
    for complaint in [
        "level=4 clocksource: timekeeping watchdog on CPU2: Marking clocksource 'tsc' as unstable",
        "level=4 clocksource: Marking clocksource tsc unstable due to frequency skew",
    ] {
        assert!(is_fault(complaint, "tsc") && !is_fault(complaint, "xen"), "{complaint}");
    }
}
