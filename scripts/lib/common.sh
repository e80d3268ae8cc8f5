# shellcheck shell=bash
# Helpers that every script shares: messages, errors, the cache directory.
# Source it first; it sets no shell options, each script does that itself.

# shellcheck disable=SC2034  # read by the scripts that source this file
REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
CACHE="${KVM_XEN_CACHE:-$REPO/.cache}"
TARGET_TRIPLE=x86_64-unknown-linux-gnu
TARGET_DIR="${CARGO_TARGET_DIR:-$REPO/target}"

mkdir -p "$CACHE"

# say TEXT…: one progress line on stderr, with the seconds since the script began.
say() {
    printf '[%4ds] %s\n' "$SECONDS" "$*" >&2
}

# die TEXT…: one line that says what failed and what to do, then exit 1.
die() {
    printf '%s: error: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# usage_error TEXT…: as die, with the exit status of wrong usage.
usage_error() {
    printf '%s: %s (see %s --help)\n' "${0##*/}" "$*" "${0##*/}" >&2
    exit 2
}

# as_root COMMAND…: runs it as root, through sudo when needed.
as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "'$1' needs root and there is no sudo: run this script as root"
    fi
}

# quietly LOG COMMAND…: keeps the output in LOG, shows its end on failure only.
quietly() {
    local log="$1" status=0
    shift
    "$@" >"$log" 2>&1 || status=$?
    if [[ $status -ne 0 ]]; then
        tail -n 20 "$log" >&2
    fi
    return "$status"
}

# now_ms: milliseconds of the clock that no one steps.
now_ms() {
    local up
    read -r up _ </proc/uptime
    printf '%s\n' "$((10#${up/./} * 10))"
}

# scratch NAME: sets the variable NAME to a fresh directory that is removed on
# exit. Not to be called in a subshell, whose own exit would remove it.
SCRATCH_DIRS=()
scratch() {
    local dir
    dir="$(mktemp -d "${TMPDIR:-/tmp}/kvm-xen.XXXXXX")"
    SCRATCH_DIRS+=("$dir")
    printf -v "$1" '%s' "$dir"
}

remove_scratch() {
    [[ ${#SCRATCH_DIRS[@]} -eq 0 ]] || rm -rf "${SCRATCH_DIRS[@]}"
}
trap remove_scratch EXIT

# one_at_a_time NAME: waits until no other script is in the section of that name;
# holds it until the shell (or the subshell of a substitution) ends.
one_at_a_time() {
    local lock
    exec {lock}>"$CACHE/$1.lock"
    flock "$lock"
}
