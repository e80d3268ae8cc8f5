//! Stock Debian kernels, as they are.
//!
//! They come from the cache (`$KVM_XEN_CACHE`, else `.cache`), which
//! `scripts/test` fills before it runs this.

use kvm_xen::vmm::acpi::AcpiConfig;
use kvm_xen::vmm::boot::{BootConfig, prepare_boot};
use kvm_xen::vmm::hypercall_sites;
use kvm_xen::vmm::loader::{FileSource, KernelKind};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Every vmlinuz below `dir`, some levels deep.
fn kernels(dir: &Path, depth: u32, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && depth > 0 {
            kernels(&path, depth - 1, found);
        } else if name == "vmlinuz" || name.starts_with("vmlinuz-") {
            found.push(path);
        }
    }
}

#[test]
#[ignore = "needs Debian kernels in the cache: scripts/test fetches them"]
fn debian_kernels_load() {
    let cache = std::env::var_os("KVM_XEN_CACHE").map_or_else(|| ".cache".into(), PathBuf::from);
    let mut found = Vec::new();
    kernels(&cache, 4, &mut found);
    assert!(!found.is_empty(), "no vmlinuz below {}: run scripts/kernels 6.12", cache.display());
    for path in found {
        let (layout, ram) = super::machine(512);
        let config = BootConfig {
            kernel: FileSource::Path(&path),
            initrd: Some(FileSource::Bytes(b"initrd")),
            modules: &[],
            cmdline: "console=ttyS0",
            acpi: AcpiConfig { cpus: 2, devices: &[] },
        };
        let start = Instant::now();
        let state = prepare_boot(&ram, &layout, &config).unwrap();
        let kernel = &state.kernel;
        println!("{} {:?} in {:?}", path.display(), kernel.kind, start.elapsed());
        assert!(matches!(kernel.kind, KernelKind::BzImage(_)));
        assert_eq!(kernel.notes.guest_os.as_deref(), Some("linux"));
        assert_eq!(kernel.start, 16 << 20, "Linux asks for 16 MiB");
        assert!(kernel.segments.iter().any(|s| s.executable));
        assert!(u64::from(state.start_info) >= kernel.end);
        assert!(state.modules[0].addr > u64::from(state.start_info));
        let start = Instant::now();
        let done = hypercall_sites::rewrite(&ram, &kernel.code, 0xe4).unwrap();
        println!("{done:?} in {:?}", start.elapsed());
        assert_eq!(done.unsure, 0, "each place can be told");
        assert!(done.sites >= 10, "KVM's, VMware's and Xen's own hypercalls");
        let again = hypercall_sites::rewrite(&ram, &kernel.code, 0xe4).unwrap();
        assert_eq!(again, hypercall_sites::Rewritten::default(), "once is enough");
    }
}
