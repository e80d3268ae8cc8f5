# shellcheck shell=bash disable=SC2154 # $binary, $agent and $work are the script's
# Time from the host: VMClock, its sources, what disturbs them.

# vmclock SECONDS [OPTION]…: a Linux 7.2 reads its VMClock by its driver, by AWS's crate
# and by ours, while the nested host's clock is disturbed for that long in every way;
# every sample on the host's side lies within the published bound. The options are the
# nested host's.
vmclock() {
    local seconds="$1" tree examples out="$work/vmclock-$1" status=0
    shift
    tree="$(kernel_tree 7.2)"
    examples="$(build_examples set-clock clock-truth)"
    module_initrd "$work/vmclock.cpio" "$(build_vmclock_agent)" 7.2 ptp_vmclock
    scripts/nested --timeout $((seconds + 120)) "$@" --with "$examples/clock-truth" \
        --with "$examples/set-clock" --with scripts/lib/disturb-l1 --with scripts/lib/vmclock-l1 \
        --with "$tree/vmlinuz" --with "$work/vmclock.cpio:guest.cpio" -- \
        sh ./vmclock-l1 5 "$seconds" >"$out" || status=$?
    grep -v 'KVMXEN sample' "$out"
    # An impaired host has no pairs of KVM's; the guest's clock is monotonic all the same.
    if [[ "$*" == *hpet* ]]; then
        expect 'source: "clock_gettime between two RDTSC"' "$out" || status=1
    fi
    [[ $status -eq 0 ]] && expect 'KVMXEN ptp name=vmclock0' "$out" &&
        grep -qE 'KVMXEN spin .*reads=[1-9][0-9]* backward=0 cross_backward=0' "$out" &&
        grep -qE 'truth all samples=[1-9][0-9]{3}.* broken=0 beyond-own-bound=0' "$out" &&
        grep -qE 'vmclock-total readings=([0-9]+) refused=0 agree=\1 ' "$out" &&
        grep -qE 'ptp-total inside=[1-9][0-9]* outside=0 failed=0' "$out" &&
        grep -qE 'vmclock-poll wakes=[1-9][0-9]* news=[1-9]' "$out"
}

# host_sources: a Linux 7.2 reads what a host that is itself a guest has: the PTP device, by
# precise pairs and, while its clocksource is xen, by bracketed ones, and the VMClock. They
# agree with each other and with the nested host's clock.
host_sources() {
    local tree examples out="$work/host-sources" ptp=ptp:/dev/ptp0 status=0
    tree="$(kernel_tree 7.2)"
    examples="$(build_examples set-clock clock-truth host-sources)"
    module_initrd "$work/sources.cpio" "$(build_vmclock_agent)" 7.2 ptp_vmclock \
        "$examples/host-sources"
    scripts/nested --timeout 90 --with "$examples/clock-truth" --with "$examples/set-clock" \
        --with scripts/lib/sources-l1 --with "$tree/vmlinuz" \
        --with "$work/sources.cpio:guest.cpio" -- sh ./sources-l1 >"$out" || status=$?
    grep -vE 'KVMXEN (sample|reading)' "$out"
    [[ $status -eq 0 ]] && expect "name=$ptp refused: /dev/ptp0 is no usable clock: it is 37 s" "$out" &&
        expect 'timescale=Tai method=Precise' "$out" &&
        expect 'timescale=Tai method=Extended' "$out" &&
        [[ $(grep -c 'KVMXEN ran /host-sources status=Some(0)' "$out") -eq 2 ]] &&
        [[ $(grep -cE "KVMXEN both first=$ptp second=vmclock:.* pairs=200 same=1 .* beyond=0" \
            "$out") -eq 2 ]] &&
        [[ $(grep -cE 'truth source=(ptp|vmclock):.* readings=16 .* outside=0' "$out") -eq 2 ]]
}

# clock_verify: kvm-xen clock verify finds every sample within the bound, in peace and
# while the host's clock is disturbed; sources of time that are none are refused.
clock_verify() {
    local tree examples out="$work/clock-verify" wrong status=0
    tree="$(kernel_tree 6.12)"
    examples="$(build_examples set-clock)"
    scripts/nested --timeout 150 --with "$binary" --with "$examples/set-clock" \
        --with scripts/lib/disturb-l1 --with scripts/lib/verify-l1 --with "$tree/vmlinuz" \
        --with "$work/agent.cpio:guest.cpio" -- sh ./verify-l1 >"$out" || status=$?
    cat "$out"
    for wrong in ptp:/dev/null ptp:/nonexistent ptp:/ vmclock:/dev/zero vmclock:/nonexistent; do
        grep -qE "^refused $wrong status=1 lines=1: kvm-xen: .*${wrong#*:}" "$out" || status=1
    done
    [[ $status -eq 0 ]] && expect 'verify in peace, exit 0' "$out" &&
        expect 'verify while disturbed, exit 0' "$out"
}

# moved_clocksource: the nested host loses its TSC clocksource and has it again, four times,
# while KVM writes a Linux's clock pages. No time goes back, KVM's clock is brought on where
# the host's fell behind, and ends on the line.
moved_clocksource() {
    local tree out="$work/moved-clocksource" status=0
    tree="$(kernel_tree 6.12)"
    scripts/nested --timeout 150 --with "$binary" --with scripts/lib/clocksource-l1 \
        --with "$tree/vmlinuz" --with "$work/agent.cpio:guest.cpio" -- \
        sh ./clocksource-l1 20 >"$out" || status=$?
    grep -v 'KVMXEN sample' "$out"
    # The demonstration wants the exact line throughout, which such a host can not give.
    [[ $status -eq 0 ]] && expect 'clocksource rounds=4 ' "$out" &&
        grep -qE 'KVMXEN spin .* backward=0 cross_backward=0' "$out" &&
        grep -qE '^ *end +ok' "$out" && grep -qE "KVM's pages from the line +ok" "$out" &&
        expect 'the host keeps time by its TSC again' "$out"
}

# local_tai: a guest that runs natively is within 100 ns of the host's CLOCK_TAI at the
# 99th percentile, and its bound within 1 us of the host's own.
local_tai() {
    local elf socket="$work/tai.sock" out="$work/tai" machine status=0 p99 own
    elf="$(build_guest clock)"
    "$binary" run --kernel "$elf" --memory 16M --cmdline seconds=25 --api-socket "$socket" \
        >"$work/tai-guest" 2>&1 &
    machine=$!
    timeout 20 sh -c "while [ ! -S '$socket' ]; do sleep 0.1; done" && sleep 2 &&
        "$binary" clock verify "$socket" --seconds 15 >"$out" || status=$?
    kill "$machine" 2>/dev/null || true
    wait "$machine" || true
    cat "$work/tai-guest" "$out"
    p99="$(sed -n 's/.*99 % within \([0-9]*\) ns.*/\1/p' "$out")"
    own="$(sed -n "s/.*the host's own error *at least \([0-9]*\) ns.*/\1/p" "$out")"
    [[ $status -eq 0 && ${p99:-1000} -le 100 && ${own:-10000} -le 1000 ]]
}

# no_vmclock: without the device there is nothing to bind to.
no_vmclock() {
    local tree out="$work/no-vmclock"
    tree="$(kernel_tree 7.2)"
    module_initrd "$work/no-vmclock.cpio" "$(build_vmclock_agent)" 7.2 ptp_vmclock
    kept "$out" scripts/nested --timeout 120 --with "$binary" --with "$tree/vmlinuz" \
        --with "$work/no-vmclock.cpio:guest.cpio" -- \
        timeout 100 kvm-xen run --kernel vmlinuz --initrd guest.cpio --memory 256M --vmclock off \
        --cmdline 'console=ttyS0 quiet panic=-1 agent.vmclock=1' &&
        expect 'missing check=vmclock reason: /dev/vmclock0' "$out"
}
