# shellcheck shell=bash
# Tables of our figures against QEMU's.

MISSED=0

# median: of the numbers on standard input; nothing when there are none.
median() {
    local numbers
    mapfile -t numbers < <(sort -n)
    [[ ${#numbers[@]} -gt 0 ]] || return 0
    printf '%s\n' "${numbers[$((${#numbers[@]} / 2))]}"
}

# measured RESULT COMMAND…: the command runs in the nested host, and what it prints is in
# RESULT; that is shown where `raw` is set, or the command fails, which is the end.
measured() {
    local result="$1" status=0
    shift
    "$REPO/scripts/nested" "$@" >"$result" || status=$?
    [[ -z ${raw:-} && $status -eq 0 ]] || cat "$result"
    [[ $status -eq 0 ]] || die "the nested host ended with status $status"
}

# thousandths N: N / 1000 with three decimals.
thousandths() {
    printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000))
}

# row NAME UNIT QEMU OURS BOUND: one line of the table; BOUND, in thousandths of
# QEMU's figure, may be empty. Sets MISSED where it does not hold, or, unless
# PEER_ONLY is set, a figure is missing.
row() {
    local ratio=- verdict='' found
    if [[ -n $3 && -n $4 && $3 -gt 0 ]]; then
        found=$(($4 * 1000 / $3))
        ratio="$(thousandths "$found")"
        if [[ -n $5 ]]; then
            verdict="at most $(thousandths "$5"): met"
            if [[ $found -gt $5 ]]; then
                verdict="at most $(thousandths "$5"): MISSED"
                MISSED=1
            fi
        fi
    elif [[ -n $5 && -z ${PEER_ONLY:-} ]]; then
        verdict='not measured'
        MISSED=1
    fi
    printf '%-38s %12s %12s %8s  %s\n' "$1 ($2)" "${3:--}" "${4:--}" "$ratio" "$verdict"
}
