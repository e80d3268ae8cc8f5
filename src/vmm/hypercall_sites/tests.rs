//! Synthetic code, laid out so that each place is known to be a site or not.

use proptest::prelude::*;
use vm_memory::Bytes;

use super::*;
use crate::vmm::memory::{MemoryLayout, MemoryOptions};

const PORT: u8 = 0xe4;
const AT: u64 = 0x10_0000;
const OUT: [u8; 3] = [0xe6, PORT, 0x90];

fn machine() -> GuestRam {
    MemoryLayout::new(4 << 20).unwrap().create(MemoryOptions::default()).unwrap()
}

fn code(bitness: u32, size: usize) -> KernelCode {
    let range = AT..AT + size as u64;
    KernelCode { bitness, ranges: Vec::from([range]), functions: Vec::new() }
}

/// Rewrites `bytes` as one section and returns what became of them.
fn rewritten(bytes: &[u8], code: &KernelCode) -> (Vec<u8>, Rewritten) {
    let ram = machine();
    ram.write_slice(bytes, GuestAddress(AT)).unwrap();
    let done = rewrite(&ram, code, PORT).unwrap();
    let mut after = vec![0; bytes.len()];
    ram.read_slice(&mut after, GuestAddress(AT)).unwrap();
    (after, done)
}

/// Code of `size` bytes in which no stream stays out of step for long.
fn padding(size: usize) -> Vec<u8> {
    // push rbp; mov rbp, rsp; mov eax, imm32; add rax, [rbx+8]; pop rbp; ret
    const BODY: [u8; 15] =
        [0x55, 0x48, 0x89, 0xe5, 0xb8, 1, 2, 3, 4, 0x48, 0x03, 0x43, 0x08, 0x5d, 0xc3];
    let mut code: Vec<u8> = BODY.iter().copied().cycle().take(size / 15 * 15).collect();
    code.resize(size, 0x90);
    code
}

#[test]
fn sites_at_every_alignment_near_and_far_from_the_start() {
    for site in [VMCALL, VMMCALL] {
        for before in (0..32).chain(4_090..4_130).chain([60_000]) {
            let mut bytes = padding(before);
            bytes.extend(site);
            bytes.push(0xc3);
            let mut expected = bytes.clone();
            expected[before..before + 3].copy_from_slice(&OUT);
            let (after, done) = rewritten(&bytes, &code(64, bytes.len()));
            assert_eq!(done, Rewritten { sites: 1, unsure: 0 }, "{before}");
            assert!(after == expected, "{before}");
        }
    }
}

#[test]
fn the_pattern_inside_an_instruction_stays() {
    let cases: [(&str, u32, &[u8]); 9] = [
        ("mov eax, imm32", 64, &[0xb8, 0x0f, 0x01, 0xc1, 0x00]),
        ("mov eax, imm32, its end", 64, &[0xb8, 0x00, 0x0f, 0x01, 0xd9]),
        ("movabs rax, imm64", 64, &[0x48, 0xb8, 1, 2, 0x0f, 0x01, 0xd9, 3, 4, 5]),
        ("call rel32", 64, &[0xe8, 0x0f, 0x01, 0xc1, 0xff]),
        ("mov rax, [rip+disp32]", 64, &[0x48, 0x8b, 0x05, 0x0f, 0x01, 0xc1, 0x00]),
        ("vmgexit", 64, &[0xf3, 0x0f, 0x01, 0xd9]),
        ("mov eax, imm32 in 32 bits", 32, &[0xb8, 0x0f, 0x01, 0xc1, 0x00]),
        ("pushing an imm32 in 32 bits", 32, &[0x68, 0x0f, 0x01, 0xd9, 0x00]),
        ("add ecx, eax after 0f of imm8", 64, &[0x6a, 0x0f, 0x01, 0xc1]),
    ];
    for (name, bitness, instruction) in cases {
        for before in [0, 7, 20_000] {
            let bytes = [&padding(before)[..], instruction, &padding(40)].concat();
            let (after, done) = rewritten(&bytes, &code(bitness, bytes.len()));
            assert_eq!(done, Rewritten::default(), "{name} after {before}");
            assert!(after == bytes, "{name} after {before}");
        }
    }
}

/// Bytes that are one thing in 64 bits and another in 32.
#[test]
fn the_kernels_bitness_decides() {
    // 64: mov rax, imm64 over the pattern. 32: dec eax; mov eax, imm32; vmcall.
    let bytes = [0x48, 0xb8, 1, 0, 0, 0, 0x0f, 0x01, 0xc1, 0x90, 0xc3];
    assert_eq!(rewritten(&bytes, &code(64, bytes.len())).1.sites, 0);
    let (after, done) = rewritten(&bytes, &code(32, bytes.len()));
    assert_eq!(done.sites, 1);
    assert_eq!(after[6..9], OUT);
}

#[test]
fn truncated_code() {
    for bytes in [&[][..], &[0x0f], &[0x0f, 0x01], &[0x90, 0x0f, 0x01]] {
        assert_eq!(rewritten(bytes, &code(64, bytes.len())).1, Rewritten::default());
    }
    // The range ends within the site; its last byte is somebody else's.
    assert_eq!(rewritten(&VMCALL, &code(64, 2)).1, Rewritten::default());
    // An instruction that the range cuts short holds the pattern.
    assert_eq!(rewritten(&[0xb8, 0x0f, 0x01, 0xc1], &code(64, 4)).1.sites, 0);
}

#[test]
fn a_function_symbol_is_a_sound_start() {
    // Data that swallows the beginning of the function behind it, if decoded.
    let mut bytes = padding(20_000);
    bytes.extend([0x48, 0xb8]);
    let function = bytes.len();
    bytes.extend(VMCALL);
    bytes.extend([0xc3; 16]);
    let mut code = code(64, bytes.len());
    assert_eq!(rewritten(&bytes, &code).1.sites, 0, "what a linear reading makes of it");
    code.functions = vec![AT, AT + function as u64];
    let (after, done) = rewritten(&bytes, &code);
    assert_eq!(done, Rewritten { sites: 1, unsure: 0 });
    assert_eq!(after[function..function + 3], OUT);
}

#[test]
fn streams_that_do_not_agree_leave_the_place_alone() {
    // Two streams that never meet: push imm16 in 3 bytes … each one's opcode is
    // the other's immediate, and the site is on one of them only.
    let mut bytes = padding(40_000);
    let pair: Vec<u8> = [0x6a, 0x6a].into_iter().cycle().take(8_192).collect();
    bytes.extend(&pair);
    bytes.extend(VMCALL);
    bytes.extend([0xc3; 16]);
    let (after, done) = rewritten(&bytes, &code(64, bytes.len()));
    assert_eq!(done, Rewritten { sites: 0, unsure: 1 });
    assert!(after == bytes);
}

#[test]
fn sites_across_pieces_are_found() {
    let edge = usize::try_from(PIECE).unwrap();
    for at in edge - 4..edge + 2 {
        let mut bytes = vec![0x90; edge + 64];
        bytes[at..at + 3].copy_from_slice(&VMMCALL);
        let (after, done) = rewritten(&bytes, &code(64, bytes.len()));
        assert_eq!(done.sites, 1, "{at}");
        assert_eq!(after[at..at + 3], OUT, "{at}");
    }
}

#[test]
fn code_outside_memory_is_an_error() {
    let ram = machine();
    for range in [0x3f_ff00..0x40_0100, u64::MAX - 8..u64::MAX] {
        let code = KernelCode { bitness: 64, ranges: vec![range], functions: Vec::new() };
        assert!(rewrite(&ram, &code, PORT).is_err());
    }
}

/// An instruction and whether it is a site.
fn instruction() -> impl Strategy<Value = (Vec<u8>, bool)> {
    prop_oneof![
        Just((vec![0x90], false)),
        Just((vec![0xc3], false)),
        Just((VMCALL.to_vec(), true)),
        Just((VMMCALL.to_vec(), true)),
        Just((vec![0xf3, 0x0f, 0x01, 0xd9], false)),
        Just((vec![0xb8, 0x0f, 0x01, 0xc1, 0x0f], false)),
        Just((vec![0x48, 0xb8, 0x0f, 0x01, 0xd9, 0x0f, 0x01, 0xc1, 0, 0], false)),
        any::<[u8; 4]>().prop_map(|imm| ([&[0xb8][..], &imm].concat(), false)),
        any::<[u8; 4]>().prop_map(|rel| ([&[0xe8][..], &rel].concat(), false)),
        any::<u8>().prop_map(|imm| (vec![0x6a, imm], false)),
    ]
}

proptest! {
    #[test]
    fn code_is_rewritten_at_its_sites_alone_and_once(
        program in prop::collection::vec(instruction(), 0..120),
    ) {
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for (instruction, is_site) in &program {
            bytes.extend(instruction);
            expected.extend(if *is_site { OUT.to_vec() } else { instruction.clone() });
        }
        let code = code(64, bytes.len());
        let (after, done) = rewritten(&bytes, &code);
        prop_assert_eq!(done.sites, program.iter().filter(|(_, is_site)| *is_site).count());
        prop_assert_eq!(&after, &expected);
        let (again, done) = rewritten(&after, &code);
        prop_assert_eq!(done, Rewritten::default());
        prop_assert_eq!(again, after);
    }

    #[test]
    fn nothing_changes_but_whole_sites_within_the_ranges(
        bytes in prop::collection::vec(
            prop_oneof![Just(0x0f), Just(0x01), Just(0xc1), Just(0xd9), any::<u8>()], 0..500),
        cuts in prop::collection::vec(0u64..500, 0..6),
        bitness in prop_oneof![Just(32u32), Just(64)],
    ) {
        let mut cuts = cuts;
        cuts.sort_unstable();
        let ranges: Vec<_> =
            cuts.as_chunks::<2>().0.iter().map(|[start, end]| AT + start..AT + end).collect();
        let code = KernelCode { bitness, ranges: ranges.clone(), functions: Vec::new() };
        let (after, done) = rewritten(&bytes, &code);
        let mut changed = 0;
        let mut at = 0;
        while at < bytes.len() {
            if after[at] == bytes[at] {
                at += 1;
                continue;
            }
            prop_assert!(bytes[at..].starts_with(&VMCALL) || bytes[at..].starts_with(&VMMCALL));
            prop_assert_eq!(&after[at..at + 3], &OUT[..]);
            let site = AT + at as u64..AT + at as u64 + 3;
            let inside = |r: &Range<u64>| r.start <= site.start && site.end <= r.end;
            prop_assert!(ranges.iter().any(inside));
            changed += 1;
            at += 3;
        }
        prop_assert_eq!(changed, done.sites);
    }
}
