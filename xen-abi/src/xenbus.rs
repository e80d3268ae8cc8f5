//! States of a paravirtual device, written to XenStore in decimal (`io/xenbus.h`).

numbers! {
    u32, Both {
        XENBUS_STATE_UNKNOWN = 0 => "XenbusStateUnknown",
        XENBUS_STATE_INITIALISING = 1 => "XenbusStateInitialising",
        XENBUS_STATE_INIT_WAIT = 2 => "XenbusStateInitWait",
        XENBUS_STATE_INITIALISED = 3 => "XenbusStateInitialised",
        XENBUS_STATE_CONNECTED = 4 => "XenbusStateConnected",
        XENBUS_STATE_CLOSING = 5 => "XenbusStateClosing",
        XENBUS_STATE_CLOSED = 6 => "XenbusStateClosed",
        XENBUS_STATE_RECONFIGURING = 7 => "XenbusStateReconfiguring",
        XENBUS_STATE_RECONFIGURED = 8 => "XenbusStateReconfigured",
    }
}

const STRUCTS: &[crate::layout::StructLayout] = &[];
module!("xenbus", "io/xenbus.h");
