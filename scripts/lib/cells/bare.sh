# shellcheck shell=bash disable=SC2154 # $binary, $agent and $work are the script's
# Bare-metal guests in the nested host.

# bare CPUS ARGUMENT…: the built-in bare-metal guest.
bare() {
    scripts/nested --timeout 90 --with "$binary" -- timeout 75 kvm-xen demo --cpus "$@"
}

# guest NAME STATUS CMDLINE [OPTION]…: a bare-metal guest ends with this status.
guest() {
    local name="$1" want="$2" cmdline="$3" elf status=0
    shift 3
    elf="$(build_guest "$name")"
    scripts/nested --timeout 150 --with "$binary" --with "$elf" -- \
        timeout 120 kvm-xen run --kernel "$name" --memory 64M --cmdline "$cmdline" "$@" ||
        status=$?
    [[ $status -eq $want ]] || {
        printf 'kvm-xen ended with status %d, not %d\n' "$status" "$want"
        return 1
    }
}

# million ABI: the storm with a million sends from each of 4 vCPUs, which takes
# some ten minutes.
million() {
    local elf
    elf="$(build_guest storm)"
    scripts/nested --timeout 3600 --with "$binary" --with "$elf" -- \
        timeout 3500 kvm-xen run --kernel storm --memory 64M --cpus 4 \
        --cmdline "sends=1000000 abi=$1"
}

# hostile SECONDS NAME OPTION…: 2 vCPUs make hostile hypercalls, while the host looks at
# what its VMM holds. The guest itself looks at pages that no call named.
hostile() {
    local seconds="$1" elf out="$work/hostile-$2" status=0
    shift 2
    elf="$(build_guest hostile)"
    scripts/nested --in-turn --timeout $((seconds + 120)) --with "$binary" --with "$elf" \
        --with scripts/lib/watch -- sh watch kvm-xen run --kernel hostile \
        --memory 64M --cpus 2 --cmdline "seconds=$seconds seed=20" "$@" >"$out" || status=$?
    grep -v 'hostile-progress' "$out"
    [[ $status -eq 0 ]] && expect 'hostile-checks passed=4 failed=0' "$out" &&
        expect 'strange=0' "$out"
}
