# shellcheck shell=bash
# Counting of test cells: each is named, runs, and passes, fails or is skipped.

CELLS_PASSED=0
CELLS_FAILED=0
CELLS_SKIPPED=0
CELLS_FAILED_NAMES=()
# The nested host's emulated CPU faults now and then when both of its CPUs are
# busy (docs/testing.md). What such a fault leaves in a log: the host's kernel dies,
# even at boot; a guest's CPU does; a guest's kernel meets an exception where none can
# be; or the CPU that runs a vCPU hears no interrupt any more. A cell that shows it
# runs again, twice at the most, which is said aloud: what fails always fails still.
CELLS_FAULT='the nested host ended|stopped before the command began|triple fault on vCPU'
CELLS_FAULT+='|Kernel panic - not syncing: Fatal exception'
CELLS_FAULT+='|BUG: soft lockup - CPU#[0-9]+ stuck for [0-9]+s! \[vcpu'
CELLS_RETRIES_LEFT=8
# What fails without such a trace may still be the machine, where two CPUs emulate two
# and each guest's time is held to milliseconds: a few cells have one second try. It is
# said aloud with what failed, and counted: a cell that needs it now and then is a fault.
CELLS_SECOND_TRIES_LEFT=3
CELLS_REPEATED=0

# cell NAME COMMAND…: runs the command with its output kept, shows it on failure.
cell() {
    local name="$1" log began=$SECONDS status=0 again
    shift
    log="$CACHE/test-logs/${name//[^A-Za-z0-9._-]/_}.log"
    mkdir -p "$CACHE/test-logs"
    "$@" >"$log" 2>&1 || status=$?
    for again in 1 2; do
        [[ $status -ne 0 ]] || break
        if [[ $CELLS_RETRIES_LEFT -gt 0 ]] && grep -qaE "$CELLS_FAULT" "$log"; then
            CELLS_RETRIES_LEFT=$((CELLS_RETRIES_LEFT - 1))
            printf 'RETRY %s: %s\n' "$name" "$(grep -aE "$CELLS_FAULT" "$log" | tail -n 1)"
        elif [[ $CELLS_SECOND_TRIES_LEFT -gt 0 && $again -eq 1 ]]; then
            CELLS_SECOND_TRIES_LEFT=$((CELLS_SECOND_TRIES_LEFT - 1))
            printf 'RETRY %s: failed with status %d:\n' "$name" "$status"
            tail -n 20 "$log" | sed 's/^/      | /'
        else
            break
        fi
        CELLS_REPEATED=$((CELLS_REPEATED + 1))
        mv "$log" "$log.fault-$again"
        status=0
        "$@" >"$log" 2>&1 || status=$?
    done
    if [[ $status -eq 0 ]]; then
        CELLS_PASSED=$((CELLS_PASSED + 1))
        printf 'ok    %-52s %4ds\n' "$name" $((SECONDS - began))
    else
        CELLS_FAILED=$((CELLS_FAILED + 1))
        CELLS_FAILED_NAMES+=("$name")
        printf 'FAIL  %-52s %4ds (status %d)\n' "$name" $((SECONDS - began)) "$status"
        tail -n 40 "$log" | sed 's/^/      | /'
    fi
}

# kept FILE COMMAND…: what the command prints is in the file, and shown when it has ended.
kept() {
    local file="$1" status=0
    shift
    "$@" >"$file" || status=$?
    cat "$file"
    return "$status"
}

# skip NAME REASON…: counts a cell that cannot run here, and says so loudly.
skip() {
    CELLS_SKIPPED=$((CELLS_SKIPPED + 1))
    printf 'SKIP  %s: %s\n' "$1" "${*:2}"
}

# cells_end: the summary; fails when a cell did.
cells_end() {
    local name
    for name in ${CELLS_FAILED_NAMES[@]+"${CELLS_FAILED_NAMES[@]}"}; do
        printf 'failed: %s (log: %s)\n' "$name" "$CACHE/test-logs/${name//[^A-Za-z0-9._-]/_}.log"
    done
    printf '%d passed, %d failed, %d skipped; %d tries were repeated\n' \
        "$CELLS_PASSED" "$CELLS_FAILED" "$CELLS_SKIPPED" "$CELLS_REPEATED"
    [[ $CELLS_FAILED -eq 0 ]]
}
