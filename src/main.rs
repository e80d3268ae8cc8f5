//! The `kvm-xen` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    kvm_xen::cli::main()
}
