//! Zero pages are not written, and payloads of the real packers are unpacked.

use super::payload::Payload;
use super::source::Image;
use crate::vmm::memory::{MemoryLayout, MemoryOptions, PAGE_SIZE};
use std::borrow::Cow;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Pages marked dirty among the first `count`.
fn dirty(ram: &crate::pages::GuestRam, count: usize) -> Vec<usize> {
    let region = ram.iter().next().unwrap();
    (0..count).filter(|page| region.bitmap().dirty_at(page * 4096)).collect()
}

#[test]
fn zero_pages_stay_untouched() {
    for (contents, expected) in [
        (&[1u8, 0, 0, 1][..], &[0usize, 3][..]),
        (&[0, 0, 1, 1], &[2, 3]),
        (&[1, 1, 0, 0], &[0, 1]),
        (&[0, 0, 0, 0], &[]),
        (&[1, 1, 1, 1], &[0, 1, 2, 3]),
    ] {
        let ram = MemoryLayout::new(1 << 20).unwrap().create(MemoryOptions::default()).unwrap();
        let mut bytes = vec![0; 4 * 4096 - 100];
        for (page, byte) in bytes.chunks_mut(4096).zip(contents) {
            *page.last_mut().unwrap() = *byte;
        }
        let size = bytes.len() as u64;
        let image = Image::Bytes(Cow::Borrowed(&bytes));
        image.copy_to_guest(0, size, &ram, 0).unwrap();
        assert_eq!(dirty(&ram, 8), expected);
        let mut found = vec![0xff; bytes.len()];
        ram.read_slice(&mut found, GuestAddress(0)).unwrap();
        assert!(found == bytes);
    }
}

#[test]
fn zeros_up_to_the_last_byte_of_memory() {
    let ram = MemoryLayout::new(1 << 20).unwrap().create(MemoryOptions::default()).unwrap();
    let bytes = [0; 5000];
    let image = Image::Bytes(Cow::Borrowed(&bytes));
    image.copy_to_guest(0, 5000, &ram, (1 << 20) - 5000).unwrap();
    assert!(image.copy_to_guest(1, 5000, &ram, PAGE_SIZE).is_err(), "beyond the image");
}

/// 200 calls to one place: relative displacements that the x86 branch filter
/// makes equal.
fn calls() -> Vec<u8> {
    (0..200u32)
        .flat_map(|i| {
            let [a, b, c, d] = 0x1000u32.wrapping_sub(5 * i).to_le_bytes();
            [0xe8, a, b, c, d]
        })
        .collect()
}

/// `calls()` by `xz --check=crc32 --x86 --lzma2=dict=1MiB`, and its size.
const XZ: &str = "\
    fd377a585a0000016922de3602010400210110008b216f49e003e700105d0074013df00cd68597148083e696\
    e0500000549299ef000128e80700000021e7d9ad3e300d8b020000000001595ae8030000";
/// By `lz4 -l -9`, and its size.
const LZ4: &str = "\
    02214c1828030000c0e800100000e8fb0f0000e8f6050010f1050010ec050010e7050010e2050010dd050010\
    d8050010d3050010ce050010c9050010c4050010bf050010ba050010b5050010b0050010ab050010a6050010\
    a10500109c05001097050010920500108d05001088050010830500107e05001079050010740500106f050010\
    6a05001065050010600500105b05001056050010510500104c05001047050010420500103d05001038050010\
    330500102e05001029050010240500101f0500101a05001015050010100500100b0500100605001001050060\
    fc0e0000e8f7050010f2050010ed050010e8050010e3050010de050010d9050010d4050010cf050010ca0500\
    10c5050010c0050010bb050010b6050010b1050010ac050010a7050010a20500109d05001098050010930500\
    108e05001089050010840500107f0500107a05001075050010700500106b05001066050010610500105c0500\
    1057050010520500104d05001048050010430500103e05001039050010340500102f0500102a050010250500\
    10200500101b05001016050010110500100c0500100705001002050060fd0d0000e8f8050010f3050010ee05\
    0010e9050010e4050010df050010da050010d5050010d0050010cb050010c6050010c1050010bc050010b705\
    0010b2050010ad050010a8050010a30500109e05001099050010940500108f0500108a050010850500108005\
    00107b05001076050010710500106c05001067050010620500105d05001058050010530500104e0500104905\
    0010440500103f0500103a05001035050010300500102b05001026050010210500101c050010170500101205\
    00100d0500100805001003050060fe0c0000e8f9050010f4050010ef050010ea050010e5050010e0050010db\
    050010d6050010d1050010cc050010c7050010c2050010bd050010b8050010b3050010ae050010a9050010a4\
    0500109f0500109a05001095050010900500108b05001086050010810500107c05001077050010720500106d\
    05001068050010630500105e05001059050010540500104f0500104a05001045050010400500103b05001036\
    050010310500102c05001027050090220c0000e81d0c0000e8030000";
/// By `zstd --ultra -22`, and its size.
const ZSTD: &str = "\
    28b52ffd0488ad0700b40de800100000e8fb0f0000e8f6f1ece7e2ddd8d3cec9c4bfbab5b0aba6a19c97928d\
    88837e79746f6a65605b56514c47423d38332e29241f1a15100b0601fc0ef7f2ede8e3ded9d4cfcac5c0bbb6\
    b1aca7a29d98938e89847f7a75706b66615c57524d48433e39342f2a25201b16110c0702fd0df8f3eee9e4df\
    dad5d0cbc6c1bcb7b2ada8a39e99948f8a85807b76716c67625d58534e49443f3a35302b26211c17120d0803\
    fe0cf9f4efeae5e0dbd6d1ccc7c2bdb8b3aea9a49f9a95908b86817c77726d68635e59544f4a45403b36312c\
    27220c0000e81d0c000080c4a810f8ec1de0d7207ebb9ae12e06dac5c04e094a4a01a7001994e8030000";
/// By `gzip -n -9`.
const GZIP: &str = "\
    1f8b080000000000020315c47968ce010000d00f85dac6289491239b8c1c3139726484e5080b6b2347584346\
    58468e1c3972645bb3e5c8c8c811962326478e1c31397234e468dfd64c663972e4f7de1f2f1c8a0e85c2bf9b\
    067dd75755ab42ef55ae177aa287baab9bbaaa4b3aa7d33aae233aa8bdcad76e6dd766add76aadd0522d5286\
    e6688652355913344623354c83d44fbdd55d5dd449edd45a2d14ad0835543dfd6912f443b5faacb03ee88d5e\
    eaa91ee99e6ee99a2eebbccee8848a55a47ddaa31cedd0166dd01a656b9932355f733553699aa2891aab514a\
    d460f5571ff550bc62d55e316aa9668a5423d5d7dfa8a09ffaa61a55eaa3deea959ea94cf7755bd755aa0b3a\
    ab933aaa43daaf02e56aa7b66aa3d66aa5966bb116689e66699aa66a92c669b4866b880628413dd55571eaa0\
    366aa5e68a526335d0bfc8a05faad31755e993dee9b59eebb11ee88e6ee88a2eaa44a7744c87754085cad32e\
    6dd326add32a656989162a5db3355d294ad678256984866aa0faaa97baa9b33aaa6dd07f549299efe8030000";

#[test]
fn payloads_of_the_tools_that_the_kernel_uses() {
    for packed in [XZ, LZ4, ZSTD, GZIP] {
        let packed: Vec<u8> = (0..packed.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&packed[i..i + 2], 16).unwrap())
            .collect();
        let unpack = |packed: &[u8]| {
            let payload = Payload::open(packed, 1 << 20).unwrap();
            let mut unpacked = vec![0; usize::try_from(payload.size()).unwrap()];
            payload.unpack_into(&mut unpacked).map(|()| (unpacked, payload.compression()))
        };
        let (unpacked, compression) = unpack(&packed).unwrap();
        assert!(unpacked == calls(), "{compression}");
        let head = Payload::open(&packed, 1 << 20).unwrap().head();
        assert!(head.starts_with(&calls()), "{compression}");
        // One byte changed: each format but LZ4 has a checksum over its contents.
        let mut damaged = packed.clone();
        damaged[packed.len() / 2] ^= 1;
        if let Ok((unpacked, _)) = unpack(&damaged) {
            assert!(compression == super::Compression::Lz4 || unpacked == calls());
        }
        let error = Payload::open(&packed, 999).err().unwrap().to_string();
        assert!(error.starts_with("kernel unpacks to"), "{error}");
    }
}
