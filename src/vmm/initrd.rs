//! Initial ramdisks, made in memory: a `newc` archive of cpio, which Linux
//! unpacks without help, with the agent of this project in it.
//!
//! Linux unpacks what lies behind an archive as a further one, compressed or
//! not, over what is there already. Ours comes first, for behind a compressed
//! archive not every kernel finds another one; and the agent has a name of its
//! own ([`AGENT_PATH`], for `rdinit=`), so that nothing can take its place.

/// The agent's name in the guest.
pub const AGENT_PATH: &str = "/kvm-xen/agent";

/// `guests/agent`, a static program, which `build.rs` compiled beside this
/// crate. Empty where the crate was built without the sources of the guests.
static AGENT: &[u8] = include_bytes!(concat!(env!("KVM_XEN_GUESTS"), "/agent"));

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
const ALIGNMENT: usize = 4;

/// An initial ramdisk with the agent, then whatever is in `user`, another
/// initial ramdisk. `None` where the agent is not built in.
pub fn with_agent(user: &[u8]) -> Option<Vec<u8>> {
    if AGENT.is_empty() {
        return None;
    }
    let mut archive = Archive::default();
    for name in ["dev", "kvm-xen", "proc", "sys"] {
        archive.directory(name);
    }
    // A kernel without devtmpfs has no others.
    archive.device("dev/console", 5, 1);
    archive.device("dev/kmsg", 1, 11);
    archive.program(AGENT_PATH.trim_start_matches('/'), AGENT);
    let mut bytes = archive.finish();
    bytes.extend_from_slice(user);
    Some(bytes)
}

/// An archive in the making.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, (0, 0), &[]);
    }

    fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, CHARACTER_DEVICE, (major, minor), &[]);
    }

    fn program(&mut self, name: &str, contents: &[u8]) {
        self.entry(name, PROGRAM, (0, 0), contents);
    }

    /// One member: the header of 13 hexadecimal numbers, the name with its NUL,
    /// the contents, the latter two padded (the kernel's
    /// `driver-api/early-userspace/buffer-format`).
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.entries += 1;
        // Names here are short; contents that need 33 bits fit no guest either.
        let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let fields = [
            self.entries, // inode
            mode,
            0, // owner
            0, // group
            1, // links
            0, // time of change
            size(contents.len()),
            0, // device that it lies on
            0,
            device.0,
            device.1,
            size(name.len() + 1),
            0, // sum of its bytes, in another format
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, device, contents.
    type Member = (String, u32, (u32, u32), Vec<u8>);

    /// Reads an archive back as its format's description says, not as the code
    /// above writes it. The members, and what lies behind.
    fn unpack(mut bytes: &[u8]) -> (Vec<Member>, &[u8]) {
        let mut members = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |at: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * at..14 + 8 * at]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let name = std::str::from_utf8(&bytes[110..110 + name_size - 1]).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            let start = (110 + name_size).next_multiple_of(4);
            let end = (start + size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return (members, &bytes[end..]);
            }
            let contents = bytes[start..start + size].to_vec();
            members.push((name.to_owned(), field(1), (field(9), field(10)), contents));
            bytes = &bytes[end..];
        }
    }

    #[test]
    fn the_agent_comes_first_and_the_users_behind_it() {
        let bytes = with_agent(b"theirs").unwrap();
        let (members, rest) = unpack(&bytes);
        assert_eq!(rest, b"theirs");
        let names: Vec<&str> = members.iter().map(|(name, ..)| name.as_str()).collect();
        let expected =
            ["dev", "kvm-xen", "proc", "sys", "dev/console", "dev/kmsg", "kvm-xen/agent"];
        assert_eq!(names, expected);
        assert_eq!(members[4].2, (5, 1));
        assert_eq!((members[6].1, members[6].3.as_slice()), (0o100_755, AGENT));
        assert!(AGENT.starts_with(b"\x7fELF"));
    }

    #[test]
    fn odd_lengths_are_padded() {
        let mut archive = Archive::default();
        archive.program("a", b"12345");
        archive.program("bc", b"");
        archive.directory("def");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % ALIGNMENT, 0);
        let (members, rest) = unpack(&bytes);
        assert!(rest.is_empty());
        assert_eq!(members[0].3, b"12345");
        assert_eq!(members.len(), 3);
    }
}
