# shellcheck shell=bash
# The initrd of a Linux guest: one static program as its first process.

# guest_initrd OUT [INIT [SCRIPT [BUSYBOX]]]: writes an initrd that runs INIT, a static program; by
# default a busybox script that says what the kernel runs on and powers off.
# SCRIPT is another such script under scripts/lib. Not compressed: unpacking
# costs a nested guest far more than copying.
guest_initrd() {
    local out="$1" init="${2:-}" script="${3:-guest-init}" busybox="${4:-/bin/busybox}" root
    root="$(mktemp -d "${TMPDIR:-/tmp}/kvm-xen.XXXXXX")"
    mkdir -p "$root"/{dev,proc,sys,run,tmp}
    if [[ -n $init ]]; then
        cp "$init" "$root/init"
    else
        mkdir "$root/bin"
        cp "$busybox" "$root/bin/busybox"
        cp "$REPO/scripts/lib/$script" "$root/init"
    fi
    chmod 755 "$root/init"
    (cd "$root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$out"
    rm -rf "$root"
}
