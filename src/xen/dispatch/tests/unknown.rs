//! What is not there is told of once, not per call.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use xen_abi::errno::Errno;
use xen_abi::hypercall::*;
use xen_abi::xen::MulticallEntry;

use crate::pages::Width;
use crate::xen::domain::lock;
use crate::xen::test_calls::{ARG, NOWHERE, WIDTHS, call, outcome};
use crate::xen::test_platform::{domain, get, put};

/// Keeps the lines that `KVM_XEN_LOG=debug` shows of this room.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::DEBUG && metadata.target().starts_with("kvm_xen::xen")
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        lock(&self.0).push(line.0);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// An event's fields in words.
#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0 += &format!("{}={value:?} ", field.name());
    }
}

/// The lines that `work` leaves.
fn lines_of(work: impl FnOnce()) -> Vec<String> {
    let lines = Lines::default();
    tracing::subscriber::with_default(lines.clone(), work);
    std::mem::take(&mut *lock(&lines.0))
}

#[test]
fn an_unknown_operation_leaves_one_line() {
    // (hypercall, operation, as it is told)
    let table = [
        (HYPERVISOR_SCHED_OP, 8, 8),
        (HYPERVISOR_SCHED_OP, u64::from(u32::MAX), u64::from(u32::MAX)),
        (HYPERVISOR_VCPU_OP, 16, 16),
        (HYPERVISOR_VCPU_OP, 100, 100),
        (HYPERVISOR_EVENT_CHANNEL_OP, 15, 15),
        (HYPERVISOR_XEN_VERSION, 12, 12),
        (HYPERVISOR_HVM_OP, 26, 26),
        // The operation is 6 bits, above them is how much of it was done.
        (HYPERVISOR_MEMORY_OP, 63, 63),
        (HYPERVISOR_MEMORY_OP, 7 << 6 | 62, 62),
        (HYPERVISOR_GRANT_TABLE_OP, 13, 13),
        (HYPERVISOR_PHYSDEV_OP, 12, 12),
        (HYPERVISOR_VM_ASSIST, 2, 2),
    ];
    for (number, operation, told) in table {
        let (domain, ..) = domain(1);
        // Widths and the other arguments make no difference.
        let ask = || {
            for (width, arg) in WIDTHS.into_iter().zip([5, ARG]).cycle().take(100) {
                let arg = if number == HYPERVISOR_VM_ASSIST { 5 } else { arg };
                let args = [operation, if number == HYPERVISOR_VCPU_OP { 0 } else { arg }, arg];
                let got = call(&domain, width, number, &args);
                assert_eq!(got, Err(Errno::ENOSYS), "{number} {operation}");
            }
        };
        let lines = lines_of(ask);
        let [line] = &lines[..] else { panic!("{number} {operation}: {lines:?}") };
        let fields = format!("number={number} operation={told} ");
        assert!(line.contains(&fields) && line.contains("ENOSYS"), "{line}");
        assert_eq!(lines_of(ask), [""; 0], "{number} {operation}: again");
    }
}

#[test]
fn each_unknown_number_leaves_one_line() {
    let (domain, ..) = domain(1);
    let numbers = [0, 11, 62, 63, 64, 65, 4095, u64::from(u32::MAX), u64::MAX];
    let ask = || {
        for number in numbers.into_iter().cycle().take(100) {
            let got = call(&domain, Width::Bits64, number, &[number, ARG]);
            assert_eq!(got, Err(Errno::ENOSYS), "{number}");
        }
    };
    let lines = lines_of(ask);
    assert_eq!(lines.len(), numbers.len(), "{lines:?}");
    for number in numbers {
        let field = format!("number={number} ");
        let told = lines.iter().filter(|line| line.contains(&field)).count();
        assert_eq!(told, 1, "{number}: {lines:?}");
    }
    assert_eq!(lines_of(ask), [""; 0]);
}

#[test]
fn what_is_known_leaves_none() {
    let (domain, ..) = domain(1);
    let lines = lines_of(|| {
        for width in WIDTHS {
            assert_eq!(call(&domain, width, HYPERVISOR_XEN_VERSION, &[0]), Ok(0x4_0011));
            let refused = [
                (HYPERVISOR_VCPU_OP, [3, 9, 0], Errno::ENOENT),
                (HYPERVISOR_EVENT_CHANNEL_OP, [0, NOWHERE, 0], Errno::EFAULT),
                (HYPERVISOR_HYPFS_OP, [0, 0, 0], Errno::EPERM),
            ];
            for (number, args, errno) in refused {
                assert_eq!(call(&domain, width, number, &args), Err(errno));
            }
        }
    });
    assert_eq!(lines, [""; 0]);
}

#[test]
fn calls_of_a_list_are_told_of_too() {
    let (domain, ..) = domain(1);
    let entry =
        MulticallEntry { op: HYPERVISOR_SCHED_OP, args: [99, 0, 0, 0, 0, 0], ..Default::default() };
    put(&domain, ARG, &[entry; 8]);
    let lines = lines_of(|| {
        assert_eq!(call(&domain, Width::Bits64, HYPERVISOR_MULTICALL, &[ARG, 8]), Ok(0));
    });
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(
        get::<[MulticallEntry; 8]>(&domain, ARG).map(|entry| entry.result),
        [u64::MAX - 37; 8]
    );
}

/// A guest that makes up operations fills neither the log nor our memory.
#[test]
fn the_lines_are_bounded() {
    let (domain, ..) = domain(1);
    let lines = lines_of(|| {
        for operation in 0..10_000 {
            let _ = outcome(&domain, Width::Bits64, HYPERVISOR_HVM_OP, &[operation << 32, ARG]);
            let _ = outcome(&domain, Width::Bits64, 1000 + operation, &[]);
        }
    });
    // And one that says so.
    assert_eq!(lines.len(), 256 + 1);
    assert!(lines[256].contains("no more"), "{}", lines[256]);
}
