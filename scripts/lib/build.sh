# shellcheck shell=bash
# Builds what the scripts run: the static binary, and the guests.

RELEASE_DIR="$TARGET_DIR/$TARGET_TRIPLE/release"

# build_release: builds the static kvm-xen, prints its path.
build_release() {
    command -v cargo >/dev/null || die "no cargo: install Rust 1.88 or newer"
    say "building kvm-xen (release, static)"
    (cd "$REPO" && quietly "$CACHE/build.log" cargo build --release --bin kvm-xen) ||
        die "kvm-xen does not build (log: $CACHE/build.log)"
    printf '%s\n' "$RELEASE_DIR/kvm-xen"
}

# build_guest NAME: builds one bare-metal guest, prints its path.
build_guest() {
    (cd "$REPO" && quietly "$CACHE/build-guests.log" cargo build --release -p guests --bin "$1") ||
        die "the guest '$1' does not build (log: $CACHE/build-guests.log)"
    printf '%s\n' "$RELEASE_DIR/$1"
}

# build_agent: builds the static program that is the init of Linux guests, which
# looks at their clocks; prints its path.
build_agent() {
    (cd "$REPO" && quietly "$CACHE/build-agent.log" cargo build --release -p agent) ||
        die "the agent does not build (log: $CACHE/build-agent.log)"
    printf '%s\n' "$RELEASE_DIR/agent"
}
