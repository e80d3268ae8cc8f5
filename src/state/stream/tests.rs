use super::*;

fn small() -> Vec<u8> {
    let mut writer = StateWriter::new(Vec::new()).unwrap();
    writer.value(tag::MACHINE, 0, &("a machine", 2u32)).unwrap();
    writer.section(tag::PAGES, 0, &[7; 40]).unwrap();
    writer.value(tag::VCPU, 1, &vec![1u64, 2, 3]).unwrap();
    writer.section(Tag(*b"note"), 0, b"whatever").unwrap();
    writer.finish().unwrap().0
}

fn read(bytes: &[u8]) -> Result<Vec<Section>, StateError> {
    let mut reader = StateReader::new(bytes)?;
    let mut sections = Vec::new();
    while let Some(section) = reader.next_section()? {
        sections.push(section);
    }
    reader.finish()?;
    Ok(sections)
}

#[test]
fn what_was_written_is_read() {
    let sections = read(&small()).unwrap();
    let names: Vec<_> = sections.iter().map(|section| section.tag.to_string()).collect();
    assert_eq!(names, ["MACH", "PAGE", "VCPU", "note"]);
    assert_eq!(sections[0].value::<(String, u32)>().unwrap(), ("a machine".to_owned(), 2));
    assert_eq!((sections[2].index, sections[2].value::<Vec<u64>>().unwrap()), (1, vec![1, 2, 3]));
    assert!(sections[1].value::<u32>().is_err() && sections[3].value::<u32>().is_err());
    assert!(tag::VCPU.is_critical() && !sections[3].tag.is_critical());
}

#[test]
fn every_change_of_every_byte_is_found() {
    let whole = small();
    for at in 0..whole.len() {
        for flip in [1, 0x80, 0xff, 0x55] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            assert!(read(&bytes).is_err(), "byte {at} ^ {flip:#x}");
        }
    }
}

#[test]
fn every_cut_is_found() {
    let whole = small();
    for len in 0..whole.len() {
        let error = read(&whole[..len]).unwrap_err();
        let cut = matches!(error, StateError::Truncated { .. } | StateError::NotState);
        assert!(cut, "{len}: {error}");
        assert_eq!(matches!(error, StateError::NotState), len == 0, "{len}: {error}");
    }
    let mut more = whole;
    more.push(0);
    assert!(matches!(read(&more), Err(StateError::Trailing { .. })));
}

#[test]
fn sections_in_another_order_or_of_another_state_are_found() {
    let header = &small()[..HEADER_SIZE];
    let mut writer = StateWriter::new(Vec::new()).unwrap();
    writer.section(tag::VCPU, 0, b"one").unwrap();
    writer.section(tag::VCPU, 1, b"two").unwrap();
    let whole = writer.finish().unwrap().0;
    let size = SECTION_HEADER + 3 + CHECKSUM;
    let (one, rest) = whole[HEADER_SIZE..].split_at(size);
    let (two, end) = rest.split_at(size);
    assert!(read(&[header, one, two, end].concat()).is_ok());
    for parts in [
        &[two, one, end][..],
        &[one, end],
        &[two, end],
        &[one, one, two, end],
        &[one, two, two, end],
        &[end],
        &[one, two, end, end],
    ] {
        assert!(read(&[&[header], parts].concat().concat()).is_err());
    }
}

fn header(version: u16, reserved: [u8; 2]) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&version.to_le_bytes());
    header.extend_from_slice(&reserved);
    header.extend_from_slice(&crc(0, &header).to_le_bytes());
    header
}

#[test]
fn versions() {
    for (version, good) in [(1, true), (2, true)] {
        let reader = StateReader::new(header(version, [0; 2]).leak() as &[u8]);
        assert_eq!(reader.is_ok(), good, "{version}");
    }
    let error = |version| StateReader::new(&header(version, [0; 2])[..]).map(drop).unwrap_err();
    assert!(matches!(error(0), StateError::Older { found: 0, oldest: 1, newest: 2 }));
    for version in [3, 4, 255, 256, u16::MAX] {
        let error = error(version);
        assert!(matches!(error, StateError::Newer { .. }), "{error}");
        assert!(error.to_string().contains(&format!("version {version}")), "{error}");
    }
    assert!(matches!(StateReader::new(&header(2, [1, 0])[..]), Err(StateError::Header)));
    assert!(matches!(StateReader::new(&b"KVMXEN\r\n 16 bytes"[..]), Err(StateError::NotState)));
    assert!(matches!(StateReader::new(&b""[..]), Err(StateError::NotState)));
}

#[test]
fn a_length_beyond_all_is_refused_before_it_is_read() {
    let mut writer = StateWriter::new(Vec::new()).unwrap();
    let long = vec![0; usize::try_from(MOST_PAYLOAD).unwrap() + 1];
    assert!(matches!(writer.section(tag::PAGES, 0, &long), Err(StateError::TooLong { .. })));
    let mut bytes = header(2, [0; 2]);
    let [.., a, b, c, d] = bytes[..] else { panic!() };
    let mut section = tag::PAGES.0.to_vec();
    section.extend_from_slice(&[0; 4]);
    section.extend_from_slice(&u64::MAX.to_le_bytes());
    let checksum = crc(u32::from_le_bytes([a, b, c, d]), &section);
    bytes.extend_from_slice(&section);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    assert!(matches!(read(&bytes), Err(StateError::TooLong { len: u64::MAX, .. })));
}

/// Takes `room` bytes and then is full.
struct Full {
    room: usize,
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.room == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let taken = bytes.len().min(self.room);
        self.room -= taken;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_told_wherever_it_is_met() {
    let whole = small().len();
    let write = |room| -> Result<(), StateError> {
        let mut writer = StateWriter::new(Full { room })?;
        writer.value(tag::MACHINE, 0, &("a machine", 2u32))?;
        writer.section(tag::PAGES, 0, &[7; 40])?;
        writer.value(tag::VCPU, 1, &vec![1u64, 2, 3])?;
        writer.section(Tag(*b"note"), 0, b"whatever")?;
        writer.finish().map(drop)
    };
    for room in 0..whole {
        let error = write(room).unwrap_err().to_string();
        assert!(error.contains("No space left"), "{room}: {error}");
    }
    assert!(write(whole).is_ok());
}
