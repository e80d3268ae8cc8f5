//! Every sub-operation of `xen_version`, byte for byte, in both widths.

use xen_abi::hypercall::HYPERVISOR_XEN_VERSION;

use super::*;
use crate::xen::test_calls::{ARG, NOWHERE, WIDTHS, call};
use crate::xen::test_platform::{RAM_SIZE, domain, get, put};

/// Fills 2 KiB with a mark, asks, and answers with the bytes before the mark.
fn filled(domain: &crate::xen::Domain, width: crate::pages::Width, cmd: u32) -> Vec<u8> {
    put(domain, ARG, &[0xee_u8; 2048]);
    assert_eq!(call(domain, width, HYPERVISOR_XEN_VERSION, &[cmd.into(), ARG]), Ok(0), "{cmd}");
    let bytes: [u8; 2048] = get(domain, ARG);
    let end = bytes.iter().rposition(|&byte| byte != 0xee).map_or(0, |last| last + 1);
    bytes[..end].to_vec()
}

#[test]
fn strings_fill_their_field_and_end() {
    for width in WIDTHS {
        let (domain, ..) = domain(1);
        let table: &[(u32, usize, &[u8])] = &[
            (XENVER_EXTRAVERSION, 16, b".0-kvm-xen\0"),
            (XENVER_CAPABILITIES, 1024, b"hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 \0"),
            (XENVER_CHANGESET, 64, b"unavailable\0"),
            (XENVER_COMMANDLINE, 9, b"<denied>\0"),
            (XENVER_COMPILE_INFO, 144, b"rustc\0"),
            (XENVER_GUEST_HANDLE, 16, b"0123456789abcdef"),
        ];
        for &(cmd, size, start) in table {
            let bytes = filled(&domain, width, cmd);
            assert_eq!(bytes.len(), size, "{cmd}");
            assert_eq!(bytes[..start.len()], *start, "{cmd}");
            if size > 16 {
                assert!(bytes[size - 1] == 0, "{cmd} is not terminated");
            }
        }
        let info: CompileInfo = {
            filled(&domain, width, XENVER_COMPILE_INFO);
            get(&domain, ARG)
        };
        assert_eq!(info.compile_by[..8], *b"kvm-xen\0");
        assert!(info.compile_date.ends_with(&[0]) && info.compile_domain.ends_with(&[0]));
    }
}

#[test]
fn long_text_is_cut_before_its_end() {
    assert_eq!(text::<4>("abcdef"), *b"abc\0");
    assert_eq!(text::<4>("abc"), *b"abc\0");
    assert_eq!(text::<4>(""), [0; 4]);
    assert_eq!(text::<0>("abc"), [0_u8; 0]);
}

#[test]
fn platform_parameters_have_the_callers_width() {
    let (domain, ..) = domain(1);
    let ask = |width| {
        put(&domain, ARG, &[0xee_u8; 16]);
        let args = [XENVER_PLATFORM_PARAMETERS.into(), ARG];
        assert_eq!(call(&domain, width, HYPERVISOR_XEN_VERSION, &args), Ok(0));
        get::<[u64; 2]>(&domain, ARG)
    };
    let mark = 0xeeee_eeee_eeee_eeee;
    assert_eq!(ask(WIDTHS[0]), [0xffff_8000_0000_0000, mark]);
    assert_eq!(ask(WIDTHS[1]), [mark << 32, mark]);
}

#[test]
fn features_are_those_of_a_translated_guest_without_pirqs() {
    for width in WIDTHS {
        let (domain, ..) = domain(1);
        let ask = |submap_idx: u32| {
            put(&domain, ARG, &FeatureInfo { submap_idx, submap: 0 });
            let args = [XENVER_GET_FEATURES.into(), ARG];
            (call(&domain, width, HYPERVISOR_XEN_VERSION, &args), get::<FeatureInfo>(&domain, ARG))
        };
        let submap = 0b1_0010_0011_0000_0101;
        assert_eq!(ask(0), (Ok(0), FeatureInfo { submap_idx: 0, submap }));
        assert_eq!(ask(1).0, Err(Errno::EINVAL));
        assert_eq!(ask(u32::MAX).0, Err(Errno::EINVAL));
    }
}

#[test]
fn numbers_and_refusals() {
    for width in WIDTHS {
        let (domain, ..) = domain(1);
        let edge = RAM_SIZE as u64 - 1;
        let table = [
            (XENVER_VERSION, 0, Ok(0x4_0011)),
            (XENVER_VERSION, NOWHERE, Ok(0x4_0011)),
            (XENVER_PAGESIZE, 0, Ok(4096)),
            (XENVER_PAGESIZE, ARG, Err(Errno::EINVAL)),
            (XENVER_BUILD_ID, 0, Err(Errno::EPERM)),
            (XENVER_BUILD_ID, NOWHERE, Err(Errno::EPERM)),
            (11, ARG, Err(Errno::ENOSYS)),
            (u32::MAX, ARG, Err(Errno::ENOSYS)),
            (XENVER_EXTRAVERSION, NOWHERE, Err(Errno::EFAULT)),
            (XENVER_COMPILE_INFO, NOWHERE, Err(Errno::EFAULT)),
            (XENVER_CAPABILITIES, NOWHERE, Err(Errno::EFAULT)),
            (XENVER_CHANGESET, NOWHERE, Err(Errno::EFAULT)),
            (XENVER_PLATFORM_PARAMETERS, NOWHERE, Err(Errno::EFAULT)),
            (XENVER_GET_FEATURES, NOWHERE, Err(Errno::EFAULT)),
            (XENVER_GUEST_HANDLE, NOWHERE, Err(Errno::EFAULT)),
            (XENVER_COMMANDLINE, NOWHERE, Err(Errno::EFAULT)),
            (XENVER_EXTRAVERSION, edge, Err(Errno::EFAULT)),
            (XENVER_GET_FEATURES, edge, Err(Errno::EFAULT)),
        ];
        for (cmd, arg, expected) in table {
            let got = call(&domain, width, HYPERVISOR_XEN_VERSION, &[cmd.into(), arg]);
            assert_eq!(got, expected, "{cmd} at {arg:#x}, {width:?}");
        }
    }
}
