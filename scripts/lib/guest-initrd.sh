# shellcheck shell=bash
# The initrd of a Linux guest: one static program as its first process.

# module_initrd OUT INIT SERIES WHAT…: an initrd that runs INIT, the agent, with modules
# of that kernel for it to load, in the order of their names: give them with nothing that
# they depend on. What is a path is a program, and goes to /.
module_initrd() {
    local out="$1" init="$2" series="$3" root
    shift 3
    root="$(mktemp -d "${TMPDIR:-/tmp}/kvm-xen.XXXXXX")"
    mkdir -p "$root"/{dev,proc,sys,run,tmp,kvm-xen/modules}
    cp "$init" "$root/init"
    local what modules=()
    for what in "$@"; do
        case $what in
        */*) cp "$what" "$root/" ;;
        *) modules+=("$what") ;;
        esac
    done
    kernel_modules "$(kernel_tree "$series")" "$root/kvm-xen/modules" "${modules[@]}"
    rm "$root/kvm-xen/modules/order"
    (cd "$root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$out"
    rm -rf "$root"
}

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

# noticing SECONDS TIMES: the command line of a guest whose agent watches its clocks, for so
# long at the most, and its VMClock page until that has told of so many disruptions; without
# a driver, where src/vmm puts it.
noticing() {
    printf 'console=ttyS0 quiet panic=-1 iomem=relaxed agent.jumps=1 agent.seconds=%d agent.disruptions=%d agent.vmclock-page=0xfeff0000' "$@"
}
