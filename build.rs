//! Builds the bare-metal guests and the agent of Linux guests, and hands their
//! place to the crate.
//!
//! With the feature `vmm`, a second cargo builds the packages `guests` and `agent`
//! into a target directory of its own below `OUT_DIR` (the first one holds the
//! lock of the usual one). `KVM_XEN_GUESTS` names the directory of the finished
//! ELF files at compile time, for `src/vmm/demo_guest.rs`, `src/vmm/initrd.rs`
//! and for tests. Without the
//! sources, as in a packaged crate, the files are there but empty.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What the guests are made of; anything else leaves them as they are.
const SOURCES: [&str; 11] = [
    ".cargo/config.toml",
    "Cargo.toml",
    "guests/Cargo.toml",
    "guests/build.rs",
    "guests/link.ld",
    "guests/src",
    "guests/agent/Cargo.toml",
    "guests/agent/src",
    "xen-abi/Cargo.toml",
    "xen-abi/src",
    "build.rs",
];

fn main() -> ExitCode {
    if env::var_os("CARGO_FEATURE_VMM").is_none() {
        println!("cargo:rerun-if-changed=build.rs");
        return ExitCode::SUCCESS;
    }
    let root = path_of("CARGO_MANIFEST_DIR");
    let target_dir = path_of("OUT_DIR").join("guests");
    let built = target_dir.join(TARGET).join("release");
    println!("cargo:rustc-env=KVM_XEN_GUESTS={}", built.display());
    if !root.join("guests/src").is_dir() {
        println!(
            "cargo:warning=no sources of the guests: kvm-xen demo will need --kernel, and check has no agent"
        );
        return status(
            fs::create_dir_all(&built)
                .and_then(|()| fs::write(built.join("clock"), []))
                .and_then(|()| fs::write(built.join("agent"), [])),
        );
    }
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    match build(&root, &target_dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the guests do not build: {error}");
            ExitCode::FAILURE
        }
    }
}

fn build(root: &Path, target_dir: &Path) -> Result<(), String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(root)
        .args(["build", "--release", "--package", "guests", "--package", "agent"])
        .args(["--bins", "--target", TARGET])
        // All that the guests need this build needs too: it is there already.
        .arg("--offline")
        .arg("--target-dir")
        .arg(target_dir);
    // What was set for this build (flags, wrappers such as clippy's, the
    // variables of this package) is not meant for the guests.
    for (name, _) in env::vars_os() {
        if is_of_outer_build(&name) {
            command.env_remove(name);
        }
    }
    let output = command.output().map_err(|error| format!("cannot start cargo: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// Whether a variable belongs to the build that runs this script. Where cargo
/// finds its registry, its network settings and its job server stay.
fn is_of_outer_build(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let kept = ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTRIES_"];
    let removed = ["CARGO_", "RUSTFLAGS", "RUSTDOCFLAGS", "RUSTC", "RUSTDOC", "CLIPPY_"];
    !kept.iter().any(|prefix| name.starts_with(prefix))
        && removed.iter().any(|prefix| name.starts_with(prefix))
}

fn path_of(variable: &str) -> PathBuf {
    env::var_os(variable).map(PathBuf::from).unwrap_or_default()
}

fn status(result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write below OUT_DIR: {error}");
            ExitCode::FAILURE
        }
    }
}
