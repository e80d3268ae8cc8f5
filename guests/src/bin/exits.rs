//! Ends in the way that `mode=` asks for: poweroff, reboot, crash, triple-fault,
//! panic, exception or hang.

#![no_std]
#![no_main]

use guests::rt::{Exit, triple_fault};
use guests::start_info::Machine;
use guests::{cpu, entry, report};

entry!(main);

fn main(machine: &Machine) -> Exit {
    let mode = machine.text("mode").unwrap_or("poweroff");
    report!("exits"; mode = mode);
    match mode {
        "reboot" => Exit::Reboot,
        "crash" => Exit::Crash,
        "triple-fault" => triple_fault(),
        "panic" => panic!("asked for by the command line"),
        "hang" => cpu::halt_forever(),
        "poweroff" => Exit::PowerOff,
        other => {
            report!("error no such mode"; mode = other);
            Exit::Crash
        }
    }
}
