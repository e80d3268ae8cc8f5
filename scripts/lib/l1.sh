# shellcheck shell=bash
# The nested host (L1): a Debian kernel under QEMU's emulated CPU, whose nested
# SVM gives a /dev/kvm with everything that KVM_XEN offers. Its root is an
# initrd of busybox, the KVM modules and the files of one job.
#
# Four channels lead out, none of which passes through a terminal: the
# kernel's console (a file), the command's output (QEMU's standard output), a
# tar of /out, and one line with the command's status. The last carries a nonce
# and is written at the very end, so that no output of a guest can be taken for
# it.

# The cloud kernels up to 6.1 have virtio as modules, later ones have it built in.
L1_MODULES=(virtio_pci virtio_console virtio_net kvm kvm_amd)

# l1_base TREE: prints the path of the part of the initrd that is the same for
# every job on this kernel.
l1_base() {
    local tree="$1" out="$1/l1-base.cpio" root
    local init="$REPO/scripts/lib/l1-init"
    if [[ -s $out && $out -nt $init && $out -nt $tree/stamp && $out -nt ${BASH_SOURCE[0]} ]]; then
        printf '%s\n' "$out"
        return 0
    fi
    root="$(mktemp -d "$tree/.l1.XXXXXX")"
    mkdir -p "$root"/{bin,dev,proc,sys,tmp,run,root,etc,job,out,modules}
    cp /bin/busybox "$root/bin/busybox"
    ln -s busybox "$root/bin/sh"
    cp "$init" "$root/init"
    chmod 755 "$root/init"
    kernel_modules "$tree" "$root/modules" "${L1_MODULES[@]}"
    [[ -s $root/modules/kvm_amd.ko ]] || die "no KVM for AMD among the modules in $tree"
    (cd "$root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$root.cpio"
    rm -rf "$root"
    mv "$root.cpio" "$out"
    printf '%s\n' "$out"
}
