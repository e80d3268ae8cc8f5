//! The console ring: both directions, the wrap of its indices, and a guest that
//! writes what it likes into them.

use proptest::prelude::*;
use xen_abi::hvm_params::HVM_PARAM_CONSOLE_PFN;

use super::*;
use crate::xen::event_channel;
use crate::xen::test_calls::full_domain;
use crate::xen::test_platform::{domain, get, put, with_call};

const PAGE: GuestAddress = GuestAddress(0x1000);

fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), 0x3000)]).unwrap()
}

fn word(ram: &GuestRam, offset: usize) -> u32 {
    ram.read_obj(GuestAddress(PAGE.0 + offset as u64)).unwrap()
}

fn set_word(ram: &GuestRam, offset: usize, value: u32) {
    ram.write_obj(value, GuestAddress(PAGE.0 + offset as u64)).unwrap();
}

/// The guest's side of output, as a front end writes it.
fn guest_writes(ram: &GuestRam, text: &[u8]) {
    let prod = word(ram, OUT_PROD);
    for (index, byte) in (0u32..).zip(text) {
        let at = OUT + prod.wrapping_add(index) as usize % XENCONS_OUT_SIZE;
        ram.write_obj(*byte, GuestAddress(PAGE.0 + at as u64)).unwrap();
    }
    set_word(ram, OUT_PROD, prod.wrapping_add(u32::try_from(text.len()).unwrap()));
}

/// The guest's side of input.
fn guest_reads(ram: &GuestRam) -> Vec<u8> {
    let (mut cons, prod) = (word(ram, IN_CONS), word(ram, IN_PROD));
    let mut text = Vec::new();
    while cons != prod {
        let at = cons as usize % XENCONS_IN_SIZE;
        text.push(ram.read_obj(GuestAddress(PAGE.0 + at as u64)).unwrap());
        cons = cons.wrapping_add(1);
    }
    set_word(ram, IN_CONS, cons);
    text
}

fn printed(console: &Console, ram: &GuestRam) -> (Vec<u8>, bool) {
    let mut text = Vec::new();
    let notify = console.service(ram, &mut |bytes| text.extend_from_slice(bytes));
    (text, notify)
}

fn counting(len: usize) -> Vec<u8> {
    (0..=u8::MAX).cycle().take(len).collect()
}

#[test]
fn output_at_every_place_of_the_ring() {
    // Also where the free-running index itself wraps.
    for start in [0, 1, 2047, 2048, 0x8000_0000, u32::MAX - 5] {
        for len in [1, 2, 7, 2047, 2048] {
            let (ram, console) = (ram(), Console::new(Some(PAGE)));
            set_word(&ram, OUT_PROD, start);
            set_word(&ram, OUT_CONS, start);
            let text = counting(len);
            guest_writes(&ram, &text);
            assert_eq!(printed(&console, &ram), (text, true), "{len} at {start}");
            assert_eq!(word(&ram, OUT_CONS), word(&ram, OUT_PROD), "{len} at {start}");
            assert_eq!(printed(&console, &ram), (vec![], false), "{len} at {start}");
        }
    }
}

#[test]
fn input_at_every_place_of_the_ring() {
    for start in [0, 1, 1023, 1024, 0x8000_0000, u32::MAX - 5] {
        for len in [0, 1, 1023, 1024, 1025, 5000] {
            let (ram, console) = (ram(), Console::new(Some(PAGE)));
            set_word(&ram, IN_PROD, start);
            set_word(&ram, IN_CONS, start);
            let text = counting(len);
            let taken = console.push_input(&ram, &text);
            assert_eq!(taken, len.min(1024), "{len} at {start}");
            assert_eq!(console.push_input(&ram, b"more"), (1024 - taken).min(4));
            let got = guest_reads(&ram);
            assert_eq!(got[..taken], text[..taken], "{len} at {start}");
        }
    }
}

#[test]
fn rings_that_hold_more_than_they_can_are_left_alone() {
    let (ram, console) = (ram(), Console::new(Some(PAGE)));
    for (prod, cons) in [(2049, 0), (0, 1), (u32::MAX, 0), (0x8000_0000, 0), (5, 6)] {
        set_word(&ram, OUT_PROD, prod);
        set_word(&ram, OUT_CONS, cons);
        assert_eq!(printed(&console, &ram), (vec![], false), "{prod} {cons}");
        assert_eq!((word(&ram, OUT_PROD), word(&ram, OUT_CONS)), (prod, cons));
    }
    for (prod, cons) in [(1025, 0), (0, 1), (u32::MAX, 0), (0x8000_0000, 0), (5, 6)] {
        set_word(&ram, IN_PROD, prod);
        set_word(&ram, IN_CONS, cons);
        assert_eq!(console.push_input(&ram, b"text"), 0, "{prod} {cons}");
        assert_eq!((word(&ram, IN_PROD), word(&ram, IN_CONS)), (prod, cons));
    }
}

#[test]
fn a_console_without_memory_is_silent() {
    for page in [
        None,
        Some(GuestAddress(0x10_0000)),
        Some(GuestAddress(u64::MAX - 7)),
        Some(GuestAddress(0x2800)),
    ] {
        let (ram, console) = (ram(), Console::new(page));
        assert_eq!(printed(&console, &ram), (vec![], false), "{page:?}");
        assert_eq!(console.push_input(&ram, b"text"), 0, "{page:?}");
    }
}

proptest! {
    /// Only the guest's ring is read and written, whatever the indices.
    #[test]
    fn hostile_indices(indices in prop::array::uniform4(any::<u32>()), near in any::<[i16; 2]>(), input in prop::collection::vec(any::<u8>(), 0..1500)) {
        let (ram, console) = (ram(), Console::new(Some(PAGE)));
        let [in_cons, in_prod, out_cons, out_prod] = indices;
        for (prod, cons) in [
            (out_prod, out_cons),
            (out_cons.wrapping_add_signed(near[0].into()), out_cons),
        ] {
            set_word(&ram, OUT_PROD, prod);
            set_word(&ram, OUT_CONS, cons);
            let (text, notify) = printed(&console, &ram);
            let held = prod.wrapping_sub(cons) as usize;
            prop_assert_eq!(text.len(), if held <= 2048 { held } else { 0 });
            prop_assert_eq!(notify, !text.is_empty());
        }
        for (prod, cons) in [
            (in_prod, in_cons),
            (in_cons.wrapping_add_signed(near[1].into()), in_cons),
        ] {
            set_word(&ram, IN_PROD, prod);
            set_word(&ram, IN_CONS, cons);
            let held = prod.wrapping_sub(cons) as usize;
            let room = 1024usize.saturating_sub(held);
            prop_assert_eq!(console.push_input(&ram, &input), input.len().min(room));
        }
        for outside in [0, 0x2000, 0x1000 + 3088] {
            let mut page = [0; 1008];
            ram.read_slice(&mut page, GuestAddress(outside)).unwrap();
            prop_assert!(page.iter().all(|&byte| byte == 0), "{outside:#x}");
        }
    }
}

#[test]
fn an_attached_console_talks_through_its_port() {
    let (domain, platform, _) = full_domain();
    domain.attach_console().unwrap();
    let port = domain.console.port().expect("a port");
    assert_eq!(domain.hvm_params().get(HVM_PARAM_CONSOLE_EVTCHN), u64::from(port));
    assert_eq!(domain.hvm_params().get(HVM_PARAM_CONSOLE_PFN), 4);
    domain.attach_console().unwrap();
    assert_eq!(domain.console.port(), Some(port), "attached twice");

    put(&domain, 0x4000 + OUT as u64, b"login: ");
    put(&domain, 0x4000 + OUT_PROD as u64, &7u32);
    let send = xen_abi::event_channel::EVTCHNOP_SEND;
    put(&domain, 0x8000, &port);
    let sent = with_call(&domain, 0, |call| event_channel::op(call, send.into(), 0x8000));
    assert_eq!(sent, Ok(0));
    assert_eq!(platform.take().console, b"login: ");
    assert_eq!(get::<u32>(&domain, 0x4000 + OUT_CONS as u64), 7);

    assert_eq!(domain.console_input(b"root\n"), 5);
    assert_eq!(get::<[u8; 5]>(&domain, 0x4000), *b"root\n");
    assert_eq!(domain.console_input(&[b'x'; 2000]), 1019);
}

#[test]
fn a_domain_without_a_console_page() {
    let (domain, ..) = domain(1);
    domain.attach_console().unwrap();
    assert_eq!(domain.console.port(), None);
    assert_eq!(domain.hvm_params().get(HVM_PARAM_CONSOLE_EVTCHN), 0);
    domain.service_console();
    assert_eq!(domain.console_input(b"text"), 0);
}
