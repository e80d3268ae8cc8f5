//! Names of nodes.

use xen_abi::errno::Errno;
use xen_abi::xs_wire::{XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX};

/// The root.
pub(super) const ROOT: &str = "/";

/// A domain's home.
pub(super) fn home(domid: u16) -> String {
    format!("/local/domain/{domid}")
}

/// The full name of the node that a caller with home `home` calls `name`.
///
/// # Errors
/// `EINVAL` for characters that no name has, an empty part, a `/` at the end,
/// and more than 3072 bytes, or 2048 below a domain's home.
pub(super) fn canonical(home: &str, name: &[u8]) -> Result<String, Errno> {
    let name = std::str::from_utf8(name).map_err(|_| Errno::EINVAL)?;
    // '@' begins the special names, which are for watches alone.
    if name.starts_with('@') {
        return Err(Errno::EINVAL);
    }
    let full = if name.starts_with('/') { name.to_owned() } else { format!("{home}/{name}") };
    if is_valid(&full) { Ok(full) } else { Err(Errno::EINVAL) }
}

/// What a caller may watch: a node, or a special name such as `@releaseDomain`.
/// With it, whether the caller named it by a path relative to its home.
///
/// # Errors
/// As [`canonical`].
pub(super) fn watchable(home: &str, name: &[u8]) -> Result<(String, bool), Errno> {
    if name.first() != Some(&b'@') {
        return Ok((canonical(home, name)?, name.first() != Some(&b'/')));
    }
    let special = std::str::from_utf8(name).map_err(|_| Errno::EINVAL)?;
    let good = special.len() <= XENSTORE_REL_PATH_MAX && special.bytes().all(is_name_byte);
    if good { Ok((special.to_owned(), false)) } else { Err(Errno::EINVAL) }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte)
}

fn is_valid(full: &str) -> bool {
    full.bytes().all(is_name_byte)
        && (full == ROOT || !full.ends_with('/'))
        && !full.contains("//")
        && full.len() <= XENSTORE_ABS_PATH_MAX
        && below_home(full).is_none_or(|rest| rest.len() <= XENSTORE_REL_PATH_MAX)
}

/// What follows `/local/domain/N/`.
fn below_home(full: &str) -> Option<&str> {
    let (domid, rest) = full.strip_prefix("/local/domain/")?.split_once('/')?;
    (!domid.is_empty() && domid.bytes().all(|byte| byte.is_ascii_digit())).then_some(rest)
}

/// The node above; `None` of the root.
pub(super) fn parent(path: &str) -> Option<&str> {
    if path == ROOT {
        return None;
    }
    match path.rfind('/') {
        Some(0) => Some(ROOT),
        Some(at) => Some(&path[..at]),
        None => None,
    }
}

/// The last part of a name.
pub(super) fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or("")
}

/// The name of a child.
pub(super) fn child(path: &str, name: &str) -> String {
    if path == ROOT { format!("/{name}") } else { format!("{path}/{name}") }
}

/// Whether `path` is `top` or lies below it.
pub(super) fn is_within(path: &str, top: &str) -> bool {
    match path.strip_prefix(top) {
        Some(rest) => top == ROOT || rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let home = "/local/domain/7";
        let long = |len: usize| "x".repeat(len);
        let good = [
            ("/", "/".to_owned()),
            ("/a", "/a".to_owned()),
            ("a/b-C_9", "/local/domain/7/a/b-C_9".to_owned()),
            ("a@b", "/local/domain/7/a@b".to_owned()),
            (&long(2048), format!("{home}/{}", long(2048))),
            (&format!("/{}", long(3071)), format!("/{}", long(3071))),
            (&format!("/local/domain/x/{}", long(2500)), format!("/local/domain/x/{}", long(2500))),
        ];
        for (name, full) in good {
            assert_eq!(canonical(home, name.as_bytes()).as_deref(), Ok(full.as_str()));
        }
        let bad = [
            "",
            "a/",
            "/a/",
            "//",
            "/a//b",
            "a b",
            "a.b",
            "@special",
            "/\u{e9}",
            "a\n",
            &long(2049),
            &format!("/{}", long(3072)),
            &format!("/local/domain/9/{}", long(2049)),
        ];
        for name in bad {
            assert_eq!(canonical(home, name.as_bytes()), Err(Errno::EINVAL), "{name:?}");
        }
        assert_eq!(canonical(home, &[b'/', 0xff]), Err(Errno::EINVAL));
    }

    #[test]
    fn special_names_are_for_watches() {
        assert_eq!(watchable("/h", b"@releaseDomain"), Ok(("@releaseDomain".to_owned(), false)));
        assert_eq!(watchable("/h", b"a"), Ok(("/h/a".to_owned(), true)));
        assert_eq!(watchable("/h", b"/a"), Ok(("/a".to_owned(), false)));
        assert_eq!(watchable("/h", b"@a b"), Err(Errno::EINVAL));
    }

    #[test]
    fn relations() {
        assert_eq!((parent("/"), parent("/a"), parent("/a/b")), (None, Some("/"), Some("/a")));
        assert_eq!(
            (last("/a/bc"), child("/", "a"), child("/a", "b")),
            ("bc", "/a".into(), "/a/b".into())
        );
        let table = [
            ("/a", "/", true),
            ("/", "/", true),
            ("/a/b", "/a", true),
            ("/ab", "/a", false),
            ("/a", "/a", true),
            ("/a", "/a/b", false),
            ("@x", "/", false),
            ("@x", "@x", true),
        ];
        for (path, top, within) in table {
            assert_eq!(is_within(path, top), within, "{path} {top}");
        }
    }
}
