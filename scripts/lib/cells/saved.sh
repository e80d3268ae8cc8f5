# shellcheck shell=bash disable=SC2154 # $binary, $agent and $work are the script's
# Guests that are suspended, saved and restored.

# saved NAME CYCLES MS POLICIES GAP CMDLINE [OPTION]…: a bare-metal guest is saved and
# restored so often, and passes its own checks.
saved() {
    local name="$1" cycles="$2" elf out
    elf="$(build_guest "$name")"
    out="$work/saved-$name-${4//,/-}"
    kept "$out" scripts/nested --timeout 280 --with "$binary" --with "$elf" \
        --with scripts/lib/save-loop -- \
        timeout 250 save-loop "$cycles" "$3" "$4" "$5" --kernel "$name" --memory 8M --cpus 2 \
        --cmdline "$6" "${@:7}" || return 1
    # One that ends by itself was saved at least once.
    grep -q "SAVE-LOOP cycles=[1-9]" "$out"
}

# saved_clock CYCLES MS POLICIES GAP: not a step back, the page never written again.
saved_clock() {
    saved clock "$@" "seconds=$(($1 * ($2 + 1000 * $4) / 1000 + 10)) strict=1" &&
        expect "SAVE-LOOP cycles=$1" "$work/saved-clock-${3//,/-}" &&
        expect 'KVMXEN end verdict=exact' "$work/saved-clock-${3//,/-}"
}

# save_faults: a full disk, a saver that is killed.
save_faults() {
    local elf out="$work/save-faults"
    elf="$(build_guest clock)"
    kept "$out" scripts/nested --timeout 280 --with "$binary" --with "$elf" \
        --with scripts/lib/save-faults -- \
        timeout 250 save-faults clock 20 &&
        expect 'SAVE-FAULTS disk-full=1' "$out" &&
        expect 'SAVE-FAULTS killed=20' "$out"
}

# saved_linux SERIES CYCLES POLICIES GAP_S: a Linux whose agent holds five clocks
# against each other is saved and restored. With advance each gap is a jump of all
# five, by the same; with freeze there is none.
saved_linux() {
    local series="$1" cycles="$2" policies="$3" gap="$4" tree out seconds
    tree="$(kernel_tree "$series")"
    out="$work/saved-linux-$series-${policies//,/-}"
    seconds=$((cycles * (gap + 3) + 8))
    kept "$out" scripts/nested --timeout 400 --with "$binary" --with "$tree/vmlinuz" \
        --with "$work/agent.cpio:guest.cpio" --with scripts/lib/save-loop -- \
        timeout 370 save-loop "$cycles" 12000,2500 "$policies" "$gap" --kernel vmlinuz \
        --initrd guest.cpio --memory 256M --cpus 2 \
        --cmdline "console=ttyS0 quiet panic=-1 agent.seconds=$seconds agent.jumps=1" &&
        scripts/lib/save-judge "$policies" "$gap" <"$out"
}

# suspend SERIES CPUS HOW SECONDS,… [OPTION]…: a stock kernel suspends itself for so
# many seconds each time and goes on, anew or cancelled. CLOCK_MONOTONIC stands
# still for all of it; CLOCK_BOOTTIME and CLOCK_REALTIME go on as the TSC does. A short
# suspend comes before all others: over its first, Linux sets CLOCK_REALTIME to the
# wallclock page if less than 2 s lie between them (timekeeping_suspend), which is what
# its boot lost before it had a clocksource.
suspend() {
    local series="$1" cpus="$2" how="$3" gaps="1,$4" tree out count
    shift 4
    tree="$(kernel_tree "$series")"
    count="$(tr ',' '\n' <<<"$gaps" | wc -l)"
    out="$work/suspend-$series-$cpus-$how${*// /}"
    scripts/nested --timeout 240 \
        --with "$binary" --with "$tree/vmlinuz" --with "$work/agent.cpio:guest.cpio" -- \
        timeout 200 kvm-xen run --kernel vmlinuz --initrd guest.cpio --memory 256M \
        --cpus "$cpus" --suspend-after 1 --resume-after "$gaps" --resume-as "$how" "$@" \
        --cmdline "console=ttyS0 quiet panic=-1 agent.gaps=$count" >"$out" 2>&1 || {
        cat "$out"
        return 1
    }
    grep -E 'KVMXEN gap|kvm-xen: suspend' "$out"
    expect 'end mode=PowerOff' "$out" && expect "gaps seen=$count" "$out" &&
        ! grep -E 'Call Trace|BUG:|not quiescent' "$out" && awk -v count="$count" '
            function value(name) { return match($0, name "=[0-9]+") ? substr($0, RSTART + length(name) + 1, RLENGTH - length(name) - 1) + 0 : -1 }
            function off(a, b) { return a > b ? a - b : b - a }
            /kvm-xen: suspend number=/ { gap[value("number")] = value("gap_ns") }
            /KVMXEN gap number=/ {
                n = value("number"); seen++
                elapsed[n] = value("elapsed_ns"); monotonic[n] = value("monotonic_ns")
                boottime[n] = value("boottime_ns"); realtime[n] = value("realtime_ns")
            }
            END {
                for (n = 1; n <= count; n++) {
                    most = n == 1 ? 2e9 : 5e6
                    moved = gap[n] - (boottime[n] - monotonic[n])
                    printf("gap %d of %.3f ms: MONOTONIC moved %.3f ms in it; BOOTTIME is off by %.3f ms, REALTIME by %.3f ms\n",
                        n, gap[n] / 1e6, (moved > 0 ? moved : 0) / 1e6,
                        off(boottime[n], elapsed[n]) / 1e6, off(realtime[n], elapsed[n]) / 1e6)
                    bad = bad || !(gap[n] > 0) || moved >= 5e6 ||
                        off(boottime[n], elapsed[n]) >= most || off(realtime[n], elapsed[n]) >= most ||
                        off(boottime[n], realtime[n]) >= 5e6
                }
                exit bad || seen != count
            }' "$out"
}

# suspended_saved SERIES GAP_S POLICY: a Linux is saved while paused and goes on, suspends
# and is cancelled, suspends and is moved, suspends, is saved, and is restored after so
# long. Of its five clocks MONOTONIC and RAW stand still over the gap, and the others go on
# by it.
suspended_saved() {
    local tree out="$work/suspended-saved-$1-$3" status=0
    tree="$(kernel_tree "$1")"
    scripts/nested --timeout 280 --with "$binary" --with scripts/lib/suspend-save --with scripts/lib/until-says \
        --with "$tree/vmlinuz" --with "$work/agent.cpio:guest.cpio" -- \
        timeout 250 suspend-save "$2" "$3" --kernel vmlinuz --initrd guest.cpio --memory 256M \
        --cpus 2 --cmdline 'console=ttyS0 quiet panic=-1 agent.gaps=3' >"$out" || status=$?
    grep -E 'CONTROL|KVMXEN (gap|told)|goes on' "$out"
    [[ $status -eq 0 ]] && expect 'end mode=PowerOff' "$out" && expect 'gaps seen=3' "$out" &&
        ! grep -E 'Call Trace|BUG:|not quiescent' "$out" &&
        scripts/lib/suspend-judge "$2" <"$out"
}

# suspended_away SERIES: a Linux suspends itself and is saved; the host on which it goes on
# has a TSC that is a quarter faster and can not scale it. Refused without its cooperation,
# it is told with it: its CLOCK_MONOTONIC_RAW takes the TSC for what it is there.
suspended_away() {
    local tree examples khz found out="$work/suspended-away-$1"
    tree="$(kernel_tree "$1")"
    examples="$(build_examples set-clock)"
    local with=(
        --with "$binary" --with "$examples/set-clock"
        --with scripts/lib/suspend-away --with scripts/lib/until-says
    )
    rm -rf "$out"
    kept "$out-leave" scripts/nested --timeout 200 --out "$out" "${with[@]}" \
        --with "$tree/vmlinuz" --with "$work/agent.cpio:guest.cpio" -- \
        suspend-away leave --kernel vmlinuz --initrd guest.cpio --memory 128M --cpus 2 \
        --cmdline 'console=ttyS0 quiet panic=-1 agent.gaps=1 agent.jumps=1 agent.seconds=10' ||
        return
    khz="$(sed -n 's/.*KVMXEN gaps wanted=1 tsc_khz=\([0-9]*\).*/\1/p' "$out-leave")"
    [[ -n $khz ]] || return
    kept "$out-come" scripts/nested --timeout 200 --append "tsc_early_khz=$((khz * 5 / 4))" \
        "${with[@]}" --with "$out/guest.state" -- suspend-away come &&
        expect "the guest's TSC runs at $khz kHz, this host's at" "$out-come" &&
        expect 'end mode=PowerOff' "$out-come" && expect 'cross_backward=0' "$out-come" &&
        ! grep -E 'Call Trace|BUG:|KVMXEN five .* backward=[1-9]' "$out-come" || return
    khz="$(sed -n "s/.*runs at $khz kHz, this host's at \([0-9]*\) kHz.*/\1/p" "$out-come")"
    found="$(scripts/lib/sample-khz <"$out-come")"
    echo "by its clock the TSC runs at ${found:-?} kHz, the host says $khz"
    # A sample may be held up for some us, of seconds.
    [[ -n $found && $((found > khz ? found - khz : khz - found)) -lt 100 ]]
}

# vmclock_restored SERIES GAP_S POLICY: a VMClock goes through a save and a restore: another
# generation, another disruption marker, and within its bound before and after.
vmclock_restored() {
    local tree examples out="$work/vmclock-restored-$1-$3" status=0
    tree="$(kernel_tree "$1")"
    examples="$(build_examples set-clock)"
    module_initrd "$work/vmclock.cpio" "$(build_vmclock_agent)" "$1" ptp_vmclock
    scripts/nested --timeout 280 --with "$binary" --with scripts/lib/vmclock-restore \
        --with "$examples/set-clock" --with "$tree/vmlinuz" \
        --with "$work/vmclock.cpio:guest.cpio" -- \
        timeout 260 vmclock-restore "$2" "$3" --kernel vmlinuz --initrd guest.cpio \
        --memory 256M --cpus 2 \
        --cmdline 'console=ttyS0 quiet panic=-1 tsc=reliable agent.vmclock=55' >"$out" || status=$?
    grep -vE 'KVMXEN (sample|ptp )' "$out"
    [[ $status -eq 0 ]] && expect 'CONTROL restored status=0' "$out" &&
        grep -qE 'vmclock type=.* marker=1 generation=1 ' "$out" &&
        grep -qE 'vmclock type=.* marker=[2-9] generation=[2-9] ' "$out" &&
        grep -qE 'vmclock-total readings=([0-9]+) refused=0 agree=\1 disruptions=[1-9]' "$out" &&
        grep -qE 'ptp-total inside=[1-9][0-9]* outside=0 failed=0' "$out"
}
