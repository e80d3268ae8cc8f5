//! Promise: a saved guest is read whole or refused with one clear line; nothing
//! that happens to a file, or to whoever writes it, gives another guest.

#[path = "common/faults.rs"]
mod faults;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use faults::counted;
use kvm_xen::state::{
    AtomicFile, FormatVersion, Section, StateError, StateReader, StateWriter, StoppedClock, Tag,
    tag,
};
use kvm_xen::vmm::config::MachineError;
use kvm_xen::vmm::saved_guest::SavedGuest;
use kvm_xen::xen::{HandoverPhase, HandoverState};

fn fixture(version: u16) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/guest-v{version}.state"))
}

fn sections(bytes: &[u8]) -> Vec<Section> {
    let mut reader = StateReader::new(bytes).expect("a state");
    let mut sections = Vec::new();
    while let Some(section) = reader.next_section().expect("a section") {
        sections.push(section);
    }
    reader.finish().expect("an end");
    sections
}

/// A state of these sections, its checksums right.
fn written(version: FormatVersion, sections: &[Section]) -> Vec<u8> {
    let mut writer = StateWriter::of_version(Vec::new(), version).expect("a header");
    for section in sections {
        writer.section(section.tag, section.index, &section.payload).expect("a section");
    }
    writer.finish().expect("an end").0
}

/// Why it is refused: one line.
fn refusal(bytes: &[u8]) -> Option<String> {
    let error = SavedGuest::read(bytes).err()?.to_string();
    assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
    Some(error)
}

#[test]
fn both_versions_stay_readable() {
    let read = |version| SavedGuest::open(&fixture(version)).expect("a fixture is read");
    let (first, second) = (read(1), read(2));
    assert_eq!(first.clock().incarnation, 1, "never moved");
    assert_eq!(second.clock().incarnation, 3, "restored twice");
    // The same guest but for that.
    let moved = StoppedClock { incarnation: 3, ..first.clock().clone() };
    assert_eq!(second.clock(), &moved);
    assert_eq!(first.machine(), second.machine());
    assert_eq!(first.domain(), second.domain());
    assert_eq!(first.machine().cpus, 2);
    assert_eq!(first.clock().tsc_khz, second.clock().tsc_khz);
    assert!(first.clock().line().is_ok());
    assert!(first.domain().layout.shared_info.is_some(), "it had mapped it");
    let versions = [1, 2].map(|version| {
        let bytes = fs::read(fixture(version)).expect("a fixture");
        StateReader::new(bytes.as_slice()).expect("a state").version().number()
    });
    assert_eq!(versions, [1, 2]);
}

#[test]
fn what_is_not_memory_is_small() {
    let all = sections(&fs::read(fixture(2)).expect("a fixture"));
    let small = all.iter().filter(|section| section.tag != tag::PAGES);
    let bytes: usize = small.map(|section| section.payload.len() + 24).sum();
    assert!(bytes < 256 << 10, "{bytes}");
}

#[test]
fn damage_anywhere_is_found() {
    let whole = fs::read(fixture(2)).expect("a fixture");
    let mut cases = 0;
    for case in 0..220u64 {
        // Spread over the file, the first and the last bytes among them.
        let at = (whole.len() as u64 - 1) * case / 219;
        let at = usize::try_from(at).expect("a place");
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (case % 8);
        let error = refusal(&bytes).unwrap_or_else(|| panic!("byte {at} was changed"));
        let words = ["damaged", "no saved state", "checksum", "cut off"];
        assert!(words.iter().any(|word| error.contains(word)), "byte {at}: {error}");
        cases += 1;
    }
    for case in 0..100 {
        let len = whole.len() * case / 100;
        let error = refusal(&whole[..len]).unwrap_or_else(|| panic!("cut to {len} bytes"));
        assert!(error.contains("cut off") || error.contains("no saved state"), "{len}: {error}");
        cases += 1;
    }
    assert_eq!(cases, 320);
    counted("state-damage", cases);
}

#[test]
fn versions_from_before_and_after_are_named() {
    let whole = fs::read(fixture(2)).expect("a fixture");
    let versions = [0u16, 3, 4, 5, 17, 255, 256, 4096, u16::MAX];
    for version in versions {
        let mut bytes = whole.clone();
        bytes[8..10].copy_from_slice(&version.to_le_bytes());
        let sum = crc32fast::hash(&bytes[..12]);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        let error = refusal(&bytes).expect("another version");
        let which = if version == 0 { "older" } else { "newer" };
        assert!(error.contains(&format!("format version {version}, {which}")), "{error}");
    }
    counted("state-versions", versions.len());
}

#[test]
fn sections_that_are_missing_doubled_or_foreign_are_named() {
    let whole = sections(&fs::read(fixture(2)).expect("a fixture"));
    assert!(refusal(&written(FormatVersion::NEWEST, &whole)).is_none());
    let small = whole.iter().enumerate().filter(|(_, section)| section.tag != tag::PAGES);
    let mut cases = 0;
    for (at, section) in small {
        cases += 7;
        let name = section.tag.to_string();
        let mut without = whole.clone();
        without.remove(at);
        let error = refusal(&written(FormatVersion::NEWEST, &without)).expect("one is missing");
        assert!(error.contains(&name), "without {name}: {error}");
        let mut doubled = whole.clone();
        doubled.push(section.clone());
        let error = refusal(&written(FormatVersion::NEWEST, &doubled)).expect("one is doubled");
        assert!(error.contains(&name), "{name} twice: {error}");
        for payload in
            [&b""[..], b"\xff", b"\xa0", b"\x00\x00", b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff"]
        {
            let mut spoiled = whole.clone();
            spoiled[at].payload = payload.to_vec();
            let error = refusal(&written(FormatVersion::NEWEST, &spoiled)).expect("it is spoiled");
            assert!(error.contains(&name), "{name} is {payload:?}: {error}");
        }
    }
    let foreign = |name: &[u8; 4]| Section { tag: Tag(*name), index: 0, payload: vec![1, 2] };
    let mut critical = whole.clone();
    critical.insert(1, foreign(b"XTRA"));
    let error = refusal(&written(FormatVersion::NEWEST, &critical)).expect("it is not known");
    assert!(error.contains("XTRA") && error.contains("later version"), "{error}");
    counted("state-sections", cases + 1);
    let mut harmless = whole;
    harmless.insert(1, foreign(b"note"));
    assert!(refusal(&written(FormatVersion::NEWEST, &harmless)).is_none());
}

#[test]
fn a_handover_that_was_under_way_is_read_or_refused() {
    let state = HandoverState {
        page: 0x20_0000,
        sequence: 4,
        ticket: 2,
        phase: HandoverPhase::Gathered,
        held_nmis: vec![1],
    };
    let mut payload = Vec::new();
    ciborium::into_writer(&state, &mut payload).expect("CBOR");
    let all = sections(&fs::read(fixture(2)).expect("a fixture"));
    let with = |sections: &[&[u8]]| {
        let mut all = all.clone();
        for payload in sections {
            let section = Section { tag: tag::HANDOVER, index: 0, payload: payload.to_vec() };
            all.insert(all.len() - 1, section);
        }
        refusal(&written(FormatVersion::NEWEST, &all))
    };
    assert_eq!(with(&[&payload]), None);
    for wrong in [&[&payload[..], &payload[..]][..], &[b""], &[b"\xa0"], &[b"\xff"]] {
        let error = with(wrong).expect("it is spoiled");
        assert!(error.contains("HOVR"), "{error}");
    }
    // Who does not know it has to refuse it: the guest would wait for ever.
    assert!(tag::HANDOVER.is_critical());
}

#[test]
fn a_field_of_a_later_version_is_left_out() {
    let mut all = sections(&fs::read(fixture(2)).expect("a fixture"));
    for section in all.iter_mut().filter(|section| section.tag == tag::CLOCK) {
        let value: ciborium::Value = section.value().expect("CBOR");
        let mut fields = value.into_map().expect("a map");
        fields.push(("something_new".into(), 5.into()));
        section.payload.clear();
        ciborium::into_writer(&ciborium::Value::Map(fields), &mut section.payload).expect("CBOR");
    }
    assert!(refusal(&written(FormatVersion::NEWEST, &all)).is_none());
}

#[test]
fn files_that_are_none() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = SavedGuest::open(&directory.path().join("none")).unwrap_err();
    assert!(matches!(missing, MachineError::State(StateError::Open { .. })), "{missing}");
    for contents in [&b""[..], b"KVMXEN", b"\x7fELF and so on and on and on", &[0; 4096]] {
        assert!(refusal(contents).is_some());
    }
    counted("state-none", 5);
}

/// The program says it in one line, with status 1, and leaves the file alone.
#[test]
fn the_program_refuses_in_one_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("guest.state");
    let mut bytes = fs::read(fixture(2)).expect("a fixture");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&file, &bytes).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_kvm-xen"))
        .args(["restore", &file.display().to_string(), "--time", "freeze"])
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let error = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with("kvm-xen: cannot restore: the state is damaged at byte"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert_eq!(fs::read(&file).expect("still there"), bytes);
}

const WRITER: &str = "KVM_XEN_TEST_WRITER";

/// Not a test: the process that is killed by the next one.
#[test]
fn writer_for_the_next_test() {
    let Some(target) = std::env::var_os(WRITER) else { return };
    let all = sections(&fs::read(fixture(2)).expect("a fixture"));
    loop {
        let file = AtomicFile::create(Path::new(&target)).expect("a file");
        let mut writer = StateWriter::new(file).expect("a header");
        for section in &all {
            writer.section(section.tag, section.index, &section.payload).expect("a section");
        }
        let (file, ..) = writer.finish().expect("an end");
        file.commit().expect("in place");
    }
}

#[test]
fn a_writer_that_is_killed_leaves_a_whole_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let target = directory.path().join("guest.state");
    fs::copy(fixture(1), &target).expect("the old one");
    let mut replaced = 0;
    for round in 0..40u64 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "writer_for_the_next_test"])
            .env(WRITER, &target)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a writer");
        thread::sleep(Duration::from_micros(3_000 + round * 1_700));
        child.kill().expect("killed");
        child.wait().expect("gone");
        let guest = SavedGuest::open(&target).expect("a whole state");
        replaced += u32::from(guest.clock().incarnation == 3);
    }
    assert!(replaced > 0, "no writer came to its end");
    let names: Vec<_> = fs::read_dir(directory.path()).expect("a directory").flatten().collect();
    // One that was killed between the name and the rename may have left it.
    assert!(names.len() <= 2 + 40, "{names:?}");
    let unnamed = names.iter().filter(|name| name.file_name() != "guest.state").count();
    assert!(unnamed <= 8, "{unnamed} unfinished files are left");
    counted("state-killed-writer", 40);
}

/// Makes the fixtures of a state that was saved by a real machine after two
/// restores: `KVM_XEN_STATE=FILE cargo test --test state -- --ignored`.
#[test]
#[ignore = "writes the fixtures"]
fn make_fixtures() {
    let from = std::env::var_os("KVM_XEN_STATE").expect("KVM_XEN_STATE names a file");
    let mut all = sections(&fs::read(from).expect("a state"));
    fs::write(fixture(2), written(FormatVersion::V2, &all)).expect("written");
    for section in all.iter_mut().filter(|section| section.tag == tag::CLOCK) {
        let value: ciborium::Value = section.value().expect("CBOR");
        let mut fields = value.into_map().expect("a map");
        fields.retain(|(name, _)| name.as_text() != Some("incarnation"));
        section.payload.clear();
        ciborium::into_writer(&ciborium::Value::Map(fields), &mut section.payload).expect("CBOR");
    }
    fs::write(fixture(1), written(FormatVersion::V1, &all)).expect("written");
}
