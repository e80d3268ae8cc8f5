//! Promise: bad input gets one line that names the value and the remedy, the
//! documented exit status, and nothing is left behind. Needs no KVM.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn kvm_xen(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvm-xen")).args(args).output().expect("the binary runs")
}

/// Checks status and message; the message is one line on standard error.
fn refused(args: &[&str], status: i32, parts: &[&str]) {
    let output = kvm_xen(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {error}");
    assert!(output.stdout.is_empty(), "{args:?} printed to standard output");
    assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
    assert!(error.starts_with("kvm-xen: "), "{args:?}: {error}");
    for part in parts {
        assert!(error.contains(part), "{args:?}: no {part:?} in {error}");
    }
}

/// A file in a directory that goes away with the test.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn put(&self, name: &str, bytes: &[u8]) -> String {
        let path: PathBuf = self.0.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path.to_str().expect("plain name").to_owned()
    }
}

/// A bzImage header of boot protocol 2.15 whose payload would be `payload`
/// bytes long, and nothing behind it.
fn bzimage_header(payload: u32) -> Vec<u8> {
    let mut image = vec![0u8; 1024];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&64u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&payload.to_le_bytes());
    image
}

/// An ELF64 of x86-64 with one empty loadable segment and no note at all.
fn elf_without_note() -> Vec<u8> {
    let mut image = vec![0u8; 0x1000];
    image[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    image[16..20].copy_from_slice(&[2, 0, 62, 0]);
    image[20] = 1;
    image[24..32].copy_from_slice(&0x10_0000u64.to_le_bytes());
    image[32..40].copy_from_slice(&64u64.to_le_bytes());
    image[52..54].copy_from_slice(&64u16.to_le_bytes());
    image[54..56].copy_from_slice(&56u16.to_le_bytes());
    image[56..58].copy_from_slice(&1u16.to_le_bytes());
    image[64..72].copy_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
    image[72..80].copy_from_slice(&0x200u64.to_le_bytes());
    for at in [80, 88] {
        image[at..at + 8].copy_from_slice(&0x10_0000u64.to_le_bytes());
    }
    for at in [96, 104] {
        image[at..at + 8].copy_from_slice(&0x100u64.to_le_bytes());
    }
    image
}

/// The same with a PVH entry at 1 MiB and a segment of `memory_size` bytes.
fn pvh_elf(memory_size: u64) -> Vec<u8> {
    let mut image = elf_without_note();
    image[56..58].copy_from_slice(&2u16.to_le_bytes());
    image[104..112].copy_from_slice(&memory_size.to_le_bytes());
    // Second program header: a note of 20 bytes at 0x300.
    image[120..128].copy_from_slice(&[4, 0, 0, 0, 4, 0, 0, 0]);
    image[128..136].copy_from_slice(&0x300u64.to_le_bytes());
    for at in [152, 160] {
        image[at..at + 8].copy_from_slice(&20u64.to_le_bytes());
    }
    image[168..176].copy_from_slice(&4u64.to_le_bytes());
    // Name of 4 bytes, descriptor of 4, type 18 (PHYS32_ENTRY): 1 MiB.
    let note = [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x10_0000];
    for (at, word) in (0x300..).step_by(4).zip(note) {
        image[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    image
}

#[test]
fn what_does_not_fit() {
    let files = Files::new();
    let large = files.put("large", &pvh_elf(64 << 20));
    refused(&["run", "--kernel", &large, "--memory", "32M"], 1, &["large", "memory"]);
    let small = files.put("small", &pvh_elf(0x100));
    let initrd = files.put("initrd", b"");
    std::fs::File::options().write(true).open(&initrd).unwrap().set_len(64 << 20).unwrap();
    refused(
        &["run", "--kernel", &small, "--initrd", &initrd, "--memory", "32M"],
        1,
        &["initrd", "memory"],
    );
    let missing = files.0.path().join("gone");
    refused(
        &["run", "--kernel", &small, "--initrd", missing.to_str().unwrap()],
        1,
        &["gone", "No such file"],
    );
    let long = "x".repeat(5_000);
    refused(&["run", "--kernel", &small, "--cmdline", &long], 1, &["5000", "command line"]);
}

#[test]
fn kernels_that_are_none() {
    let files = Files::new();
    let missing = files.0.path().join("missing");
    refused(&["run", "--kernel", missing.to_str().unwrap()], 1, &["missing", "No such file"]);
    refused(&["run", "--kernel", "/"], 1, &["directory"]);
    let text = files.put("notes.txt", b"this is no kernel, whatever its name says");
    refused(&["run", "--kernel", &text], 1, &["notes.txt", "bzImage"]);
    let empty = files.put("empty", b"");
    refused(&["run", "--kernel", &empty], 1, &["empty"]);
    let cut = files.put("cut", &bzimage_header(5_000_000));
    refused(&["run", "--kernel", &cut], 1, &["cut", "truncated"]);
    let noteless = files.put("noteless", &elf_without_note());
    refused(&["run", "--kernel", &noteless], 1, &["noteless", "PVH", "CONFIG_PVH"]);
}

#[test]
fn memory_that_can_not_be() {
    let files = Files::new();
    let kernel = files.put("kernel", &elf_without_note());
    let cases: [(&str, &[&str]); 6] = [
        ("0", &["0", "512M"]),
        ("4097", &["4097", "4096"]),
        ("512X", &["512X"]),
        ("", &["--memory"]),
        ("900G", &["MiB", "host"]),
        ("99999999999999999999G", &["99999999999999999999G"]),
    ];
    for (size, parts) in cases {
        refused(&["run", "--kernel", &kernel, "--memory", size], 2, parts);
    }
}

#[test]
fn vcpus_that_can_not_be() {
    let files = Files::new();
    let kernel = files.put("kernel", &elf_without_note());
    for cpus in ["0", "129", "4294967295"] {
        refused(&["run", "--kernel", &kernel, "--cpus", cpus], 2, &[cpus, "--cpus"]);
    }
    for cpus in ["two", "1.5", "99999999999"] {
        refused(&["run", "--kernel", &kernel, "--cpus", cpus], 2, &[cpus, "--cpus"]);
    }
    refused(&["run", "--kernel", &kernel, "--cpus=-1"], 2, &["-1", "--cpus"]);
}

#[test]
fn xen_versions_that_are_none() {
    let files = Files::new();
    let kernel = files.put("kernel", &elf_without_note());
    for version in ["3.4", "4", "banana", "4.99"] {
        refused(
            &["run", "--kernel", &kernel, "--xen-version", version],
            2,
            &[version, "--xen-version", "4.17"],
        );
    }
}

#[test]
fn a_source_of_time_has_a_name() {
    let wrong = ["", "tsc", "ptp", "ptp:", "vmclock:", "kvm:0", "Auto", "ntp:pool", "ptp0"];
    for wrong in wrong {
        let quoted = format!("{wrong:?}");
        refused(
            &["run", "--kernel", "x", "--time-source", wrong],
            2,
            &["--time-source", &quoted, "ptp:/dev/ptp0"],
        );
    }
    for good in ["auto", "kvm", "clock", "ptp:/dev/ptp0", "vmclock:/dev/vmclock0"] {
        refused(&["run", "--kernel", "/nowhere", "--time-source", good], 1, &["/nowhere"]);
    }
}

#[test]
fn a_vmclock_is_on_or_off() {
    for wrong in ["", "maybe", "1", "On", "auto"] {
        let output = kvm_xen(&["run", "--kernel", "x", "--vmclock", wrong]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {error}");
        assert!(error.contains("--vmclock"), "{wrong:?}: {error}");
    }
    // Both words are understood: what is refused is the kernel.
    for good in ["on", "off"] {
        refused(&["run", "--kernel", "/nowhere", "--vmclock", good], 1, &["/nowhere"]);
    }
}

#[test]
fn words_that_mean_nothing() {
    refused(&["fly"], 2, &["fly", "--help"]);
    refused(&["run"], 2, &["--kernel", "--help"]);
    refused(&["run", "--kernel", "x", "--clock", "sundial"], 2, &["sundial", "owned"]);
    refused(&["run", "--kernel", "x", "--hypercalls", "smoke"], 2, &["smoke", "port-io"]);
    refused(&["run", "--kernel", "x", "--console", "tape"], 2, &["tape", "serial"]);
    refused(&["run", "--kernel", "x", "--upcall-vector", "maybe"], 2, &["maybe", "off"]);
    refused(&["run", "--kernel", "x", "--event-channels", "3-level"], 2, &["3-level", "2-level"]);
    refused(&["demo", "--kernel", "x"], 2, &["--initrd"]);
}

/// What the laboratory and the clients of the control socket refuse.
#[test]
fn clock_commands_that_can_not_be() {
    let cases: [(&[&str], i32, &[&str]); 45] = [
        (&["lab", "--days", "0"], 2, &["--days", "'0'", "from 1 up"]),
        (&["lab", "--duration", "5"], 2, &["--duration", "'5'", "90m"]),
        (&["lab", "--duration", "1h", "--days", "2"], 2, &["--duration", "--days"]),
        (&["lab", "--duration", "9999y"], 2, &["3000000 kHz", "64 bits"]),
        (&["lab", "--host-khz", "0"], 2, &["--host-khz", "'0'"]),
        (&["lab", "--host-khz", "999"], 2, &["host 999 kHz", "1 MHz"]),
        (&["lab", "--guest-khz", "2500000,x"], 2, &["--guest-khz", "'x'"]),
        (
            &["lab", "--host-khz", "10000", "--guest-khz", "4000000", "--scaling", "amd"],
            2,
            &["4000000"],
        ),
        (&["lab", "--scaling", "arm"], 2, &["arm", "intel"]),
        (&["lab", "--updates-every", "0s"], 2, &["--updates-every", "'0s'"]),
        (&["lab", "--updates-every", "1h", "--updates-at", "2h"], 2, &["--updates-at"]),
        (&["lab", "--ntp", "1h:fast"], 2, &["--ntp", "rate", "-20ppm"]),
        (&["lab", "--ntp", "@/nonexistent/ntp"], 2, &["/nonexistent/ntp", "No such file"]),
        (&["lab", "--points", "0"], 2, &["--points", "'0'"]),
        (&["lab", "--html", "/nonexistent/lab.html"], 1, &["--html", "/nonexistent/lab.html"]),
        (&["lab", "--html", "/"], 1, &["--html", "directory"]),
        (&["lab", "--csv", "/nonexistent/lab.csv"], 1, &["--csv", "/nonexistent/lab.csv"]),
        (&["lab", "--host-khz", ","], 2, &["--host-khz"]),
        (&["lab", "--host-khz", "4294967295"], 2, &["4294967295 kHz", "100 GHz"]),
        (&["lab", "--host-khz", "4294967296"], 2, &["--host-khz", "4294967296"]),
        (&["lab", "--days", "99999999999999999999"], 2, &["--days", "'99999999999999999999'"]),
        (&["lab", "--duration", "584y"], 2, &["3000000 kHz", "64 bits"]),
        (&["lab", "--updates-at", "1h,later"], 2, &["--updates-at", "'later'"]),
        (&["lab", "--ntp", "1h:-99999999ppm"], 2, &["--ntp", "10 %"]),
        (&["lab", "--ntp", "1h:1ppm:99999999999999s"], 2, &["--ntp", "step"]),
        (&["lab", "--raw", "cooked"], 2, &["--raw", "cooked"]),
        (&["watch", "/nonexistent/socket", "--seconds", "0"], 2, &["--seconds", "'0'"]),
        (&["verify", "/nonexistent/socket", "--interval", "60001"], 2, &["--interval", "60001"]),
        (&["verify", "/"], 1, &["/", "--api-socket"]),
        (&["watch", "/nonexistent/socket"], 1, &["/nonexistent/socket", "--api-socket"]),
        (&["verify", "/dev/null"], 1, &["/dev/null", "--api-socket"]),
        (&["verify", "/nonexistent/socket", "--seconds", "0"], 2, &["--seconds", "'0'"]),
        (&["lab", "--guest-khz", "0"], 2, &["--guest-khz", "'0'"]),
        (&["lab", "--guest-khz", "-1"], 2, &["-1"]),
        (&["lab", "--points", "1000001"], 2, &["--points", "1000001", "1000000"]),
        (&["lab", "--csv", "/"], 1, &["--csv", "directory"]),
        (&["lab", "--duration", ""], 2, &["--duration", "''"]),
        (&["lab", "--duration", "1e3s"], 2, &["--duration", "'1e3s'"]),
        (&["lab", "--ntp", ""], 2, &["--ntp"]),
        (&["watch", "/dev/null"], 1, &["/dev/null", "--api-socket"]),
        (&["watch", "/nonexistent/socket", "--seconds", "soon"], 2, &["--seconds", "'soon'"]),
        (&["verify", "/nonexistent/socket"], 1, &["/nonexistent/socket", "--api-socket"]),
        (&["verify", "/nonexistent/socket", "--interval", "0"], 2, &["--interval", "'0'"]),
        (&["verify", "/nonexistent/socket", "--interval", "5ms"], 2, &["--interval", "'5ms'"]),
        (&["verify", "/x", "--seconds", "31536001"], 2, &["--seconds", "31536001", "31536000"]),
    ];
    for (args, status, parts) in cases {
        let args: Vec<&str> = ["clock"].iter().chain(args).copied().collect();
        let output = kvm_xen(&args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
        for part in parts {
            assert!(error.contains(part), "{args:?}: no {part:?} in {error}");
        }
    }
}

/// A machine that is not there, or orders that contradict each other.
#[test]
fn migrations_that_can_not_be() {
    let there = "unix:/nonexistent/there";
    let cases: [(&[&str], i32, &[&str]); 7] = [
        (&["/nonexistent/socket", there], 1, &["/nonexistent/socket", "--api-socket"]),
        (&["/nonexistent/socket", "--cancel"], 1, &["/nonexistent/socket", "--api-socket"]),
        (&["/nonexistent/socket", "--take-back"], 1, &["/nonexistent/socket", "--api-socket"]),
        (&["/nonexistent/socket"], 2, &["ADDR"]),
        (&["/nonexistent/socket", "there"], 2, &["there", "unix:PATH"]),
        (&["/nonexistent/socket", there, "--cancel"], 2, &["--cancel"]),
        (&["/nonexistent/socket", "--take-back", "--cancel"], 2, &["--cancel"]),
    ];
    for (args, status, parts) in cases {
        refused(&[&["migrate"], args].concat(), status, parts);
    }
}

/// What listens there is no kvm-xen, or ends in the middle of an answer.
#[test]
fn clients_of_a_strange_socket() {
    let files = Files::new();
    for (n, (answer, part)) in [
        ("", "the machine is gone"),
        ("HTTP/1.1 200 OK\r\nContent-Le", "the machine is gone"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "no HTTP"),
        ("HTTP/1.1 200 OK\r\n\r\n", "no sensible Content-Length"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n", "Content-Length"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", ": missing field"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfoo!", "is it the socket of a kvm-xen"),
        ("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "status 404 for /v1/"),
        ("HTTP/1.1 503 No\r\nContent-Length: 19\r\n\r\n{\"error\":\"not yet\"}", "not yet"),
    ]
    .into_iter()
    .enumerate()
    {
        let commands: [(&str, &[&str], &[&str]); 5] = [
            ("verify", &["clock", "verify"], &["--seconds", "1"]),
            ("watch", &["clock", "watch"], &["--seconds", "1"]),
            ("migrate", &["migrate"], &["unix:/nonexistent/there"]),
            ("cancel", &["migrate"], &["--cancel"]),
            ("take-back", &["migrate"], &["--take-back"]),
        ];
        for (name, command, options) in commands {
            let path = files.0.path().join(format!("{name}{n}"));
            let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            let server = std::thread::spawn(move || {
                use std::io::{Read as _, Write as _};
                let (mut client, _) = listener.accept().unwrap();
                // The client may have what it needs before all is sent.
                let _ = client.read(&mut [0; 4096]);
                let _ = client.write_all(answer.as_bytes());
            });
            let path = path.to_str().unwrap();
            refused(&[command, &[path], options].concat(), 1, &[path, part]);
            server.join().unwrap();
        }
    }
}

#[test]
fn control_sockets_that_can_not_be() {
    let files = Files::new();
    let kernel = files.put("kernel", &pvh_elf(0x100));
    let file = files.put("file", b"mine");
    let long = format!("/tmp/{}", "x".repeat(200));
    for (path, parts) in [
        (file.as_str(), ["no socket is there", "file"]),
        ("/nonexistent/api", ["/nonexistent/api", "No such file"]),
        (long.as_str(), ["205 bytes", "107"]),
    ] {
        refused(&["run", "--kernel", &kernel, "--api-socket", path], 1, &parts);
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    // The socket goes again where there is no machine to serve.
    let path = files.0.path().join("api");
    let path = path.to_str().unwrap();
    refused(
        &["run", "--kernel", "/nonexistent/kernel", "--api-socket", path],
        1,
        &["No such file"],
    );
    assert!(!Path::new(path).exists());
}

/// All that keeps a check from beginning is status 2, and comes before any guest.
#[test]
fn checks_that_can_not_begin() {
    let files = Files::new();
    let kernel = files.put("kernel", &pvh_elf(0x100));
    let text = files.put("notes.txt", b"this is no kernel, whatever its name says");
    let place = |name: &str| files.0.path().join("no/such").join(name).display().to_string();
    let (junit, json) = (place("junit.xml"), place("check.json"));
    let below_file = format!("{text}/logs");
    let cases: [(&[&str], &[&str]); 15] = [
        (&[&text], &["notes.txt", "bzImage"]),
        (&["/nonexistent/vmlinuz"], &["/nonexistent/vmlinuz", "No such file"]),
        (&["/"], &["directory"]),
        (&[&kernel, "--cells", "base,sundial"], &["sundial", "--list"]),
        (&[&kernel, "--cells", "guarded+port-io"], &["guarded+port-io", "--list"]),
        (&[&kernel, "--junit", &junit], &["--junit", &junit, "No such file"]),
        (&[&kernel, "--json", &json], &["--json", &json, "No such file"]),
        (&[&kernel, "--logs", &below_file], &["--logs", &below_file]),
        (&[&kernel, "--initrd", "/nonexistent/initrd"], &["/nonexistent/initrd", "No such file"]),
        (&[&kernel, "--memory", "0"], &["0", "512M"]),
        (&[&kernel, "--xen-version", "3.4"], &["3.4", "4.17"]),
        (&[&kernel, "--timeout", "0"], &["--timeout", "0"]),
        (&[&kernel, "--jobs", "many"], &["--jobs", "many"]),
        (&[&kernel, "--console", "none"], &["none", "serial"]),
        (&[&kernel, "--kvm-device", "/nonexistent/kvm"], &["/nonexistent/kvm", "module"]),
    ];
    for (args, parts) in cases {
        let args: Vec<&str> = ["check"].iter().chain(args).copied().collect();
        refused(&args, 2, parts);
    }
    refused(&["check"], 2, &["KERNEL", "--help"]);
}

#[test]
fn the_cells_of_a_check_can_be_listed_anywhere() {
    let output =
        kvm_xen(&["check", "--list", "/nonexistent/vmlinuz", "--kvm-device", "/nonexistent/kvm"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    for part in ["base\n", "4-vcpus+guarded+vm-vector\n", "clocksource=tsc", "left out: "] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn a_kvm_that_is_missing_or_none() {
    refused(&["probe", "--kvm-device", "/nonexistent/kvm"], 1, &["/nonexistent/kvm", "module"]);
    refused(&["probe", "--kvm-device", "/dev/null"], 1, &["/dev/null", "API version"]);
    refused(&["probe", "--kvm-device", "/"], 1, &["cannot open /"]);
    refused(&["demo", "--kvm-device", "/nonexistent/kvm"], 1, &["/nonexistent/kvm"]);
}

/// The device is there, but not for us. Root may open anything, so root runs
/// the binary as somebody else.
#[test]
fn a_kvm_without_permission() {
    let files = Files::new();
    let device = files.put("kvm", b"");
    let binary = files.0.path().join("kvm-xen");
    std::fs::copy(env!("CARGO_BIN_EXE_kvm-xen"), &binary).expect("a copy");
    set_mode(files.0.path(), 0o755);
    set_mode(Path::new(&device), 0o000);
    let mut command = Command::new(&binary);
    std::os::unix::process::CommandExt::uid(&mut command, 65534);
    let output = match command.args(["probe", "--kvm-device", &device]).output() {
        Ok(output) => output,
        // Not root: we are somebody else already.
        Err(_) => kvm_xen(&["probe", "--kvm-device", &device]),
    };
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("no permission") && error.contains("root"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

fn set_mode(path: &Path, mode: u32) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(path, mode).expect("permissions");
}

#[test]
fn help_and_version_are_no_errors() {
    let help = kvm_xen(&["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8_lossy(&help.stdout);
    for word in ["run", "probe", "demo", "check", "Exit status"] {
        assert!(text.contains(word), "{text}");
    }
    assert!(kvm_xen(&["--version"]).status.success());
}
