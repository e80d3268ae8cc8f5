//! A guest that passes whatever it likes: nothing panics, hangs or answers
//! what is not an error number.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::test_platform::{FakeVcpu, HIGH_RAM, RAM_SIZE, config, domain_with};
use super::{Hypercall, MemoryMapEntry, Outcome};
use crate::pages::Width;

/// Numbers at which checks turn over.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0u64..40,
        2 => 0u64..0x4000,
        1 => Just(RAM_SIZE as u64 - 4),
        1 => Just(HIGH_RAM),
        1 => Just(0x7ff0u64),
        1 => Just(u64::from(u32::MAX)),
        1 => Just(1u64 << 63),
        1 => Just(u64::MAX),
        1 => any::<u64>(),
    ]
}

prop_compose! {
    fn hypercall()(
        number in 0u64..64,
        args in [value(), value(), value(), value(), value(), value()],
        wide in any::<bool>(),
    ) -> Hypercall {
        let width = if wide { Width::Bits64 } else { Width::Bits32 };
        Hypercall { number, args, width, cpl: 0 }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    #[test]
    fn any_hypercall_is_answered(
        calls in proptest::collection::vec((hypercall(), 0u32..3), 1..40),
        words in proptest::collection::vec(value(), 512),
    ) {
        let mut config = config(3);
        let ram = MemoryMapEntry { addr: 0, size: RAM_SIZE as u64, kind: 1 };
        config.memory_map = vec![ram];
        let (domain, _, clock) = domain_with(config);
        let page: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        for at in 0..16 {
            domain.memory().write_slice(&page, GuestAddress(at << 12)).unwrap();
        }
        for (now_ns, (call, id)) in (0u64..).step_by(1 << 20).zip(calls) {
            clock.set_ns(now_ns);
            let outcome = domain.hypercall(&mut FakeVcpu::new(id), &call);
            if let Outcome::Return(value) = outcome {
                prop_assert!(value >= -4095, "{call:?} answered {value}");
            }
            domain.before_entry(id);
            domain.timer_expired(id);
        }
    }
}
