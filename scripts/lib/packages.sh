# shellcheck shell=bash
# Debian packages that the scripts need. Installs only what is missing.

PACKAGES_UPDATED=

# need_packages NAME…: installs those that are not installed yet.
need_packages() {
    local name missing=() scratch_log
    for name in "$@"; do
        if ! dpkg-query -W -f '${db:Status-Status}\n' "$name" 2>/dev/null | grep -qx installed; then
            missing+=("$name")
        fi
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    command -v apt-get >/dev/null ||
        die "missing packages (${missing[*]}) and no apt-get: install them by hand"
    say "installing packages: ${missing[*]}"
    scratch_log="$CACHE/packages.log"
    if [[ -z $PACKAGES_UPDATED ]]; then
        quietly "$scratch_log" as_root apt-get -q update ||
            say "apt-get update failed; trying with the lists that are here"
        PACKAGES_UPDATED=1
    fi
    quietly "$scratch_log" as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y --no-install-recommends install "${missing[@]}" ||
        die "apt-get could not install: ${missing[*]} (log: $scratch_log)"
}

# What `scripts/nested` needs to build an initrd and run its host.
need_nested_packages() {
    need_packages busybox-static cpio xz-utils zstd lz4
}

# What building needs beyond Rust itself: a linker, and the Xen public headers
# that a test compares the Rust layouts with.
need_build_packages() {
    need_packages gcc libc6-dev libxen-dev binutils
}
