# shellcheck shell=bash disable=SC2154 # $binary, $agent and $work are the script's
# The 32-bit guest and kernel, here and in the nested host.

# guest32 MODE PAGING: the 32-bit guest makes every hypercall: through the page of
# stubs, and where KVM intercepts them by the instruction itself too. KVM answers a
# direct SCHEDOP_poll on its own, by a yield: the guest says so and leaves it out.
guest32() {
    local mode="$1" paging="$2" elf calls=page out="$work/guest32-$1-$2"
    elf="$(build_guest32)"
    [[ $mode != kvm-xen ]] || calls='page direct'
    # shellcheck disable=SC2016  # expanded in the nested host
    kept "$out" scripts/nested --timeout 150 --with "$binary" --with "$elf" -- sh -c '
        for calls in $1; do
            [ $calls = page ] && yields= || yields=poll=yields
            timeout 60 kvm-xen run --kernel guest32 --memory 64M --cpus 2 --hypercalls "$2" \
                --cmdline "paging=$3 cpus=2 calls=$calls $yields" || exit
        done' - "$calls" "$mode" "$paging" &&
        expect 'KVMXEN guest32-checks passed=' "$out" &&
        expect 'KVMXEN guest32 topic=clock passed=' "$out"
}

# linux32_starts: the same kernel is loaded, and runs up to where the emulated CPU
# fails it: into its own page tables, at an address that only they map.
linux32_starts() {
    local tree out="$work/linux32-starts"
    tree="$(kernel_tree 6.1-686-pae)"
    # shellcheck disable=SC2016  # expanded in the nested host
    scripts/nested --timeout 90 --module kvm_amd=npt=0 --with "$binary" \
        --with "$tree/vmlinuz" -- sh -c '
            exits=/sys/kernel/tracing/events/kvm/kvm_exit
            echo hist:keys=guest_rip.hex:size=4096 >"$exits/trigger"
            timeout 30 kvm-xen run --kernel vmlinuz --memory 256M --cpus 1 \
                --cmdline "console=ttyS0 panic=-1" 2>&1
            grep "guest_rip: *c1" "$exits/hist" | tail -n 5' >"$out" || true
    cat "$out"
    grep -q 'guest_rip: *c1' "$out"
}

# guest32_local PAGING: the same on this machine's KVM, with port I/O.
guest32_local() {
    timeout 90 "$binary" run --kernel "$(build_guest32)" --memory 64M --cpus 2 \
        --hypercalls port-io --cmdline "paging=$1 cpus=2"
}

# takes_no_paging PAGING: this machine's KVM refuses it to a 32-bit guest.
takes_no_paging() {
    local said
    said="$(guest32_local "$1" 2>&1 || true)"
    [[ $said == *'takes no paging'* ]]
}

# linux32: a 32-bit Debian kernel on this machine's KVM.
linux32() {
    local tree out="$work/linux32" status=0
    tree="$(kernel_tree 6.1-686-pae)"
    dpkg-deb -x "$(fetch_deb bookworm@i386 '^busybox-static$')" "$work/i386"
    guest_initrd "$work/plain32.cpio" '' guest-init "$work/i386/bin/busybox"
    timeout 120 "$binary" run --kernel "$tree/vmlinuz" --initrd "$work/plain32.cpio" \
        --memory 512M --cmdline 'console=ttyS0 quiet panic=-1' >"$out" || status=$?
    cat "$out"
    [[ $status -eq 0 ]] && expect 'KVMXEN clocksource current=xen' "$out" &&
        expect 'KVMXEN hypervisor type=xen' "$out"
}
