# shellcheck shell=bash
# shellcheck disable=SC2154 # $binary and $work are the script's
# A guest between two nested hosts that a network joins.

# paired SECONDS TIMES MS OUT [OPTION of scripts/nested]… -- [OPTION of kvm-xen run]…: it
# goes there and back, and each move is within the bound that it published.
paired() {
    local seconds="$1" times="$2" ms="$3" out="$4" examples with=()
    shift 4
    while [[ $1 != -- ]]; do
        with+=("$1")
        shift
    done
    examples="$(build_examples pair-clock set-clock)"
    [[ -e $work/tls/ca.pem ]] || certificates "$work/tls"
    kept "$out" scripts/pair --timeout "$seconds" "${with[@]}" --with "$binary" \
        --with "$examples/pair-clock" --with "$examples/set-clock" \
        --with scripts/lib/pair-moves --with "$work/tls/ca.pem" \
        --with "$work/tls/1" --with "$work/tls/2" -- \
        timeout $((seconds - 20)) pair-moves "$times" "$ms" advance "${@:2}" &&
        scripts/lib/pair-judge "$times" <"$out"
}

# paired_linux SERIES TIMES SECONDS MS: a Linux, whose agent watches its clocks on each CPU
# and its VMClock page until it has noticed every move. No clock goes back.
paired_linux() {
    local series="$1" times="$2" tree out
    tree="$(kernel_tree "$series")"
    out="$work/paired-linux-$series"
    module_initrd "$work/paired.cpio" "$(build_vmclock_agent)" "$series" ptp_vmclock
    paired "$3" "$times" "18000,$4" "$out" --with "$tree/vmlinuz" \
        --with "$work/paired.cpio:guest.cpio" -- \
        --kernel vmlinuz --initrd guest.cpio --memory 128M --cpus 2 \
        --cmdline "$(noticing "$3" "$times")" &&
        grep -aq 'KVMXEN spin .* backward=0 .*cross_backward=0' "$out" &&
        [[ $(grep -ac 'KVMXEN five .*backward=0' "$out") -eq 5 ]] &&
        grep -aq "KVMXEN page-total .*refused=0 disruptions=$times generations=0" "$out"
}
