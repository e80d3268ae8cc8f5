//! Messages of XenStore and the page that carries them (`io/xs_wire.h`).

numbers! {
    u32, Both {
        XS_CONTROL = 0 => "XS_CONTROL",
        XS_DIRECTORY = 1 => "XS_DIRECTORY",
        XS_READ = 2 => "XS_READ",
        XS_GET_PERMS = 3 => "XS_GET_PERMS",
        XS_WATCH = 4 => "XS_WATCH",
        XS_UNWATCH = 5 => "XS_UNWATCH",
        XS_TRANSACTION_START = 6 => "XS_TRANSACTION_START",
        XS_TRANSACTION_END = 7 => "XS_TRANSACTION_END",
        XS_INTRODUCE = 8 => "XS_INTRODUCE",
        XS_RELEASE = 9 => "XS_RELEASE",
        XS_GET_DOMAIN_PATH = 10 => "XS_GET_DOMAIN_PATH",
        XS_WRITE = 11 => "XS_WRITE",
        XS_MKDIR = 12 => "XS_MKDIR",
        XS_RM = 13 => "XS_RM",
        XS_SET_PERMS = 14 => "XS_SET_PERMS",
        XS_WATCH_EVENT = 15 => "XS_WATCH_EVENT",
        XS_ERROR = 16 => "XS_ERROR",
        XS_IS_DOMAIN_INTRODUCED = 17 => "XS_IS_DOMAIN_INTRODUCED",
        XS_RESUME = 18 => "XS_RESUME",
        XS_SET_TARGET = 19 => "XS_SET_TARGET",
        XS_RESET_WATCHES = 21 => "XS_RESET_WATCHES",
        XS_DIRECTORY_PART = 22 => "XS_DIRECTORY_PART",
        XS_TYPE_COUNT = 23 => "XS_TYPE_COUNT",
        XS_INVALID = 0xffff => "XS_INVALID",

        XENSTORE_SERVER_FEATURE_RECONNECTION = 1 => "XENSTORE_SERVER_FEATURE_RECONNECTION",
        XENSTORE_SERVER_FEATURE_ERROR = 2 => "XENSTORE_SERVER_FEATURE_ERROR",
        XENSTORE_CONNECTED = 0 => "XENSTORE_CONNECTED",
        XENSTORE_RECONNECT = 1 => "XENSTORE_RECONNECT",
        XENSTORE_ERROR_NONE = 0 => "XENSTORE_ERROR_NONE",
        XENSTORE_ERROR_COMM = 1 => "XENSTORE_ERROR_COMM",
        XENSTORE_ERROR_RINGIDX = 2 => "XENSTORE_ERROR_RINGIDX",
        XENSTORE_ERROR_PROTO = 3 => "XENSTORE_ERROR_PROTO",
    }
    usize, Both {
        XS_WATCH_PATH = 0 => "XS_WATCH_PATH",
        XS_WATCH_TOKEN = 1 => "XS_WATCH_TOKEN",
        XENSTORE_RING_SIZE = 1024 => "XENSTORE_RING_SIZE",
        /// The longest body of a message in bytes.
        XENSTORE_PAYLOAD_MAX = 4096 => "XENSTORE_PAYLOAD_MAX",
        XENSTORE_ABS_PATH_MAX = 3072 => "XENSTORE_ABS_PATH_MAX",
        XENSTORE_REL_PATH_MAX = 2048 => "XENSTORE_REL_PATH_MAX",
    }
}

structs! {
    /// Header of a message; `len` bytes follow.
    XsdSockmsg, "struct xsd_sockmsg", Both, 16 {
        /// `XS_*`.
        type_: u32 = 0 "type",
        /// Returned in the reply.
        req_id: u32 = 4,
        /// 0 outside a transaction.
        tx_id: u32 = 8,
        len: u32 = 12,
    }
    /// The start of the shared page. Indices run freely and wrap at 2^32.
    XenstoreDomainInterface, "struct xenstore_domain_interface", Both, 2076 {
        req: [u8; XENSTORE_RING_SIZE] = 0,
        rsp: [u8; XENSTORE_RING_SIZE] = 1024,
        req_cons: u32 = 2048,
        req_prod: u32 = 2052,
        rsp_cons: u32 = 2056,
        rsp_prod: u32 = 2060,
        server_features: u32 = 2064,
        connection: u32 = 2068,
        error: u32 = 2072,
    }
}

module!("xs_wire", "io/xs_wire.h");
