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

# build_guest32: builds the 32-bit bare-metal guest, which is C against Xen's
# public headers; prints its path. No library of 32-bit code is needed.
build_guest32() {
    local from="$REPO/guests/c32" out="$TARGET_DIR/guest32"
    # shellcheck disable=SC2054  # the commas are the linker's
    local flags=(
        -m32 -march=i686 -std=gnu11 -O2 -ffreestanding -fno-builtin -nostdlib -static
        -fno-pic -no-pie -fno-stack-protector -fcf-protection=none
        -fno-asynchronous-unwind-tables -mgeneral-regs-only -Wall -Wextra -Werror
        -D__XEN_INTERFACE_VERSION__=0x00040e00
        -Wl,-m,elf_i386 -Wl,-T,"$from/link.ld" -Wl,--build-id=none -Wl,-z,norelro
        -Wl,-z,max-page-size=4096
    )
    mkdir -p "$TARGET_DIR"
    quietly "$CACHE/build-guest32.log" \
        gcc "${flags[@]}" -o "$out" "$from/start.S" "$from"/*.c ||
        die "the 32-bit guest does not build (log: $CACHE/build-guest32.log)"
    printf '%s\n' "$out"
}

# build_agent: builds the static program that is the init of Linux guests, which
# looks at their clocks; prints its path.
build_agent() {
    (cd "$REPO" && quietly "$CACHE/build-agent.log" cargo build --release -p agent) ||
        die "the agent does not build (log: $CACHE/build-agent.log)"
    printf '%s\n' "$RELEASE_DIR/agent"
}

# build_vmclock_agent: builds the agent with all that reads a VMClock; prints its path.
build_vmclock_agent() {
    local out="$TARGET_DIR/vmclock-agent"
    (cd "$REPO" && quietly "$CACHE/build-agent.log" \
        cargo build --release -p agent --features vmclock --target-dir "$out") ||
        die "the agent does not build (log: $CACHE/build-agent.log)"
    printf '%s\n' "$out/$TARGET_TRIPLE/release/agent"
}

# build_examples NAME…: builds examples, prints the directory that they are in.
build_examples() {
    local names=() name
    for name in "$@"; do
        names+=(--example "$name")
    done
    (cd "$REPO" && quietly "$CACHE/build-examples.log" cargo build --release "${names[@]}") ||
        die "the examples $* do not build (log: $CACHE/build-examples.log)"
    printf '%s\n' "$RELEASE_DIR/examples"
}
