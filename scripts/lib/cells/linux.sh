# shellcheck shell=bash disable=SC2154 # $binary, $agent and $work are the script's
# Stock kernels in the nested host.

# linux SERIES CPUS [OPTION]…: a stock kernel reaches its init as a Xen guest,
# with all its CPUs and the Xen clocksource, and powers off with exit status 0.
linux() {
    local series="$1" cpus="$2" tree out status=0
    shift 2
    tree="$(kernel_tree "$series")"
    out="$work/linux-$series-$cpus"
    kept "$out" scripts/nested --timeout 180 \
        --with "$binary" --with "$tree/vmlinuz" --with "$work/plain.cpio:guest.cpio" -- \
        timeout 150 kvm-xen run --kernel vmlinuz --initrd guest.cpio --memory 256M \
        --cpus "$cpus" --cmdline 'console=ttyS0 quiet panic=-1' "$@" || status=$?
    [[ $status -eq 0 ]] || {
        printf 'kvm-xen ended with status %d\n' "$status"
        return 1
    }
    expect "KVMXEN kernel release=$(<"$tree/release")" "$out" &&
        expect 'KVMXEN clocksource current=xen' "$out" &&
        expect 'KVMXEN hypervisor type=xen' "$out" &&
        expect "KVMXEN cpus online=$cpus" "$out"
}

# hotplug SERIES: a Linux with 4 vCPUs takes each of them out and back in.
hotplug() {
    local tree out
    tree="$(kernel_tree "$1")"
    out="$work/hotplug-$1"
    kept "$out" scripts/nested --timeout 240 \
        --with "$binary" --with "$tree/vmlinuz" --with "$work/hotplug.cpio:guest.cpio" -- \
        timeout 210 kvm-xen run --kernel vmlinuz --initrd guest.cpio --memory 256M \
        --cpus 4 --cmdline 'console=ttyS0 quiet panic=-1' &&
        expect 'turns=6 failed=0' "$out" && expect 'KVMXEN online=0-3' "$out" &&
        expect 'KVMXEN warnings=0' "$out"
}

# steal: two busy vCPUs share one CPU of the host; the guest sees the half that
# each lacks as stolen.
steal() {
    local tree out percent
    tree="$(kernel_tree 6.12)"
    out="$work/steal"
    kept "$out" scripts/nested --timeout 180 \
        --with "$binary" --with "$tree/vmlinuz" --with "$work/steal.cpio:guest.cpio" -- \
        timeout 150 taskset 1 kvm-xen run --kernel vmlinuz --initrd guest.cpio --memory 256M \
        --cpus 2 --cmdline 'console=ttyS0 quiet panic=-1' || return 1
    percent="$(sed -n 's/.*KVMXEN steal .*percent=\([0-9]*\).*/\1/p' "$out")"
    [[ ${percent:-0} -ge 35 && $percent -le 65 ]]
}

# clock SERIES CPUS [OPTION]…: the agent watches the clocks for 10 s; kvm-xen
# itself judges. The kernel may warn of what the machine lacks, but of no error.
clock() {
    local series="$1" cpus="$2" tree out
    shift 2
    tree="$(kernel_tree "$series")"
    out="$work/clock-$series-$cpus"
    kept "$out" scripts/nested --timeout 200 \
        --with "$binary" --with "$tree/vmlinuz" --with "$work/agent.cpio:guest.cpio" -- \
        timeout 170 kvm-xen demo --kernel vmlinuz --initrd guest.cpio --memory 256M \
        --cpus "$cpus" --seconds 10 --verbose "$@" || return 1
    # A PVH guest of Xen has no PCI either, and its kernel says so there too.
    expect 'KVMXEN warnings count=' "$out" && ! grep -E 'warn: level=[0-3] |Call Trace' "$out" |
        grep -v 'PCI: Fatal: No config space access function found'
}

# no_xen_probe: every choice on a KVM without Xen support is explained.
no_xen_probe() {
    scripts/nested --timeout 60 --with "$binary" -- kvm-xen probe --without kvm-xen >"$work/probe"
    cat "$work/probe"
    expect 'CONFIG_KVM_XEN=y, or --hypercalls port-io' "$work/probe" &&
        expect 'takes port-io: KVM intercepts no Xen hypercalls' "$work/probe" &&
        expect 'takes owned' "$work/probe" &&
        expect 'works, by port I/O' "$work/probe"
}

# no_callback: a guest whose callback vector cannot be delivered ends with one
# line that says what would do, instead of waiting for ever.
no_callback() {
    local tree status=0
    tree="$(kernel_tree 5.10)"
    scripts/nested --timeout 90 --with "$binary" --with "$tree/vmlinuz" -- \
        timeout 60 kvm-xen run --kernel vmlinuz --memory 256M --console none --clock owned \
        --without synic >"$work/no-callback" || status=$?
    cat "$work/no-callback"
    [[ $status -eq 1 && $(wc -l <"$work/no-callback") -eq 1 ]] &&
        expect 'use --clock auto' "$work/no-callback"
}

# hvc SERIES: the PV console carries the kernel's messages.
hvc() {
    local tree out status=0
    tree="$(kernel_tree "$1")"
    out="$work/hvc-$1"
    scripts/nested --timeout 180 \
        --with "$binary" --with "$tree/vmlinuz" --with "$work/plain.cpio:guest.cpio" -- \
        timeout 150 kvm-xen run --kernel vmlinuz --initrd guest.cpio --memory 256M \
        --console hvc --cmdline 'console=hvc0 panic=-1' >"$out" || status=$?
    [[ $status -eq 0 ]] && expect 'hvc0] enabled' "$out" && expect 'Run /init as init' "$out" &&
        expect 'reboot: Power down' "$out"
}

# balloon SERIES: a stock kernel's balloon gives 128 MiB back to the host and
# takes them again; the process of the machine shrinks by most of that.
balloon() {
    local series="$1" tree out
    tree="$(kernel_tree "$series")"
    out="$work/balloon-$series"
    kept "$out" scripts/nested --timeout 180 --with scripts/lib/balloon \
        --with "$binary" --with "$tree/vmlinuz" --with "$work/plain.cpio:guest.cpio" -- \
        timeout 150 sh ./balloon || return 1
    expect 'KVMXEN balloon down current=131072' "$out" && expect 'fill bytes=146800640 wrong=0' "$out" &&
        expect 'refill bytes=146800640 wrong=0' "$out" && awk '
            function total() { return substr($5, length("total=") + 1) + 0 }
            /balloon filled/ { full = total(); getline; rss_full = $2 + 0 }
            /balloon down/ { small = total(); getline; rss_small = $2 + 0 }
            /balloon up/ { again = total() }
            END {
                printf "MemTotal %d, %d, %d KiB; resident %d, then %d KiB\n",
                    full, small, again, rss_full, rss_small
                exit !(small < full - 100000 && again == full && rss_small < rss_full - 80000)
            }' "$out"
}

# store SERIES: a stock kernel finds its store, a process writes there, and no boot
# waits for devices.
store() {
    local series="$1" tree out
    tree="$(kernel_tree "$series")"
    out="$work/store-$series"
    scripts/nested --timeout 120 \
        --with "$binary" --with "$tree/vmlinuz" --with "$work/agent.cpio:guest.cpio" -- \
        timeout 100 kvm-xen run --kernel vmlinuz --initrd guest.cpio --memory 256M --cpus 2 \
        >"$out" || {
        cat "$out"
        return 1
    }
    expect 'KVMXEN store domid=1 name=guest written=ready' "$out" &&
        expect 'xen:balloon: Initialising balloon driver' "$out" &&
        ! grep -i -E 'xenbus.*(wait|timeout|fail)|ring is not quiescent' "$out"
}

# panics: a kernel without an init panics, and that is status 3.
panics() {
    local tree status=0
    tree="$(kernel_tree 6.12)"
    scripts/nested --timeout 120 --with "$binary" --with "$tree/vmlinuz" -- \
        timeout 100 kvm-xen run --kernel vmlinuz --memory 256M \
        --cmdline 'console=ttyS0 quiet panic=-1' || status=$?
    [[ $status -eq 3 ]]
}

# matrix SERIES IMAGE SECONDS [OPTION]…: kvm-xen check with a kernel, as vmlinux or
# vmlinuz, all cells in one nested host. The reports are kept beside the logs.
# Two cells may have a second try: the emulated CPU faults now and then.
matrix() {
    local series="$1" image="$2" seconds="$3" tree file
    shift 3
    tree="$(kernel_tree "$series")"
    file="$tree/vmlinuz"
    [[ $image == vmlinuz ]] || file="$(kernel_vmlinux "$tree")"
    scripts/nested --timeout "$seconds" --out "$CACHE/test-logs/check-$series-$image" \
        --with "$binary" --with "$file:$image" -- \
        kvm-xen check "$image" --timeout 120 --retries 2 --max-late 5000 \
        --logs /out/consoles --junit /out/junit.xml --json /out/check.json "$@"
}

# debian_kernels: every Debian kernel that was fetched loads.
debian_kernels() {
    KVM_XEN_CACHE="$CACHE" cargo test --release --test loader -- --ignored
}
