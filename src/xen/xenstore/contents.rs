//! What a toolstack writes for a guest before it runs, as `libxl` does for a
//! PVH one.

use xen_abi::errno::Errno;

use super::node::StorePerm;
use super::request::{change_perms, write};
use super::store::{Calls, Store};

/// What a guest finds of itself in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub domid: u16,
    pub uuid: [u8; 16],
    pub name: String,
    pub vcpus: u32,
    /// RAM in KiB.
    pub memory_kib: u64,
    /// (frame, port) of the console's ring, if there is one.
    pub console: Option<(u64, u32)>,
    /// The same of the store's.
    pub store: (u64, u32),
}

/// Who a node belongs to.
#[derive(Clone, Copy)]
enum Kind {
    /// Domain 0's, and nobody else may read it.
    Hidden,
    /// Domain 0's; the guest may read.
    Told,
    /// The guest's own.
    Own,
}

/// Fills the store of a guest that has not run yet.
pub(super) fn fill(store: &mut Store, of: &Identity) -> Result<(), Errno> {
    let uuid = uuid_text(&of.uuid);
    let (home, vm) = (super::path::home(of.domid), format!("/vm/{uuid}"));
    let mut nodes = vec![
        ("/local".to_owned(), String::new(), Kind::Hidden),
        ("/local/domain".to_owned(), String::new(), Kind::Hidden),
        ("/vm".to_owned(), String::new(), Kind::Hidden),
        (vm.clone(), String::new(), Kind::Told),
        (format!("{vm}/uuid"), uuid, Kind::Told),
        (format!("{vm}/name"), of.name.clone(), Kind::Told),
        (home.clone(), String::new(), Kind::Told),
    ];
    let memory = of.memory_kib.to_string();
    let told = [
        ("vm", vm.as_str()),
        ("name", &of.name),
        ("domid", &of.domid.to_string()),
        ("cpu", ""),
        ("memory", ""),
        ("memory/static-max", &memory),
        ("memory/target", &memory),
        ("memory/videoram", "0"),
        ("device", ""),
        ("control", ""),
        ("control/platform-feature-multiprocessor-suspend", "1"),
        ("control/platform-feature-xs_reset_watches", "1"),
        ("store", ""),
        ("store/ring-ref", &of.store.0.to_string()),
        ("store/port", &of.store.1.to_string()),
    ];
    let own = [
        "control/shutdown",
        "control/feature-poweroff",
        "control/feature-reboot",
        "control/feature-suspend",
        "control/sysrq",
        "device/suspend/event-channel",
        "data",
        "drivers",
        "feature",
        "attr",
        "error",
    ];
    nodes
        .extend(told.map(|(name, value)| (format!("{home}/{name}"), value.to_owned(), Kind::Told)));
    nodes.extend(own.map(|name| (format!("{home}/{name}"), String::new(), Kind::Own)));
    for vcpu in 0..of.vcpus {
        nodes.push((format!("{home}/cpu/{vcpu}/availability"), "online".to_owned(), Kind::Told));
    }
    if let Some((frame, port)) = of.console {
        let console = [
            ("backend-id", "0".to_owned()),
            ("ring-ref", frame.to_string()),
            ("port", port.to_string()),
            ("limit", "1048576".to_owned()),
            ("type", "xenconsoled".to_owned()),
            ("output", "pty".to_owned()),
        ];
        nodes.push((format!("{home}/console"), String::new(), Kind::Told));
        nodes.extend(
            console.map(|(name, value)| (format!("{home}/console/{name}"), value, Kind::Told)),
        );
    }
    // Nobody watches yet.
    let mut calls = Calls::new();
    for (path, value, kind) in nodes {
        let perms = match kind {
            Kind::Hidden => vec![StorePerm::none(0)],
            Kind::Told => vec![StorePerm::none(0), StorePerm::read(of.domid)],
            Kind::Own => vec![StorePerm::none(of.domid)],
        };
        store.as_back_end(&path, &mut calls, |view, path| {
            write(view, path, value.as_bytes())?;
            change_perms(view, path, perms)
        })?;
    }
    Ok(())
}

/// A UUID in its usual form.
pub(super) fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    [&uuid[..4], &uuid[4..6], &uuid[6..8], &uuid[8..10], &uuid[10..]].map(hex).join("-")
}
