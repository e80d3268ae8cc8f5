# shellcheck shell=bash
# QEMU 10.0 from bookworm-backports, unpacked into the cache and never installed:
# it emulates the nested host, and its Xen mode is the peer that kvm-xen is
# measured against inside. Bookworm's own 7.2 is no choice for the former: with
# one thread per emulated CPU, Linux 6.12 crashed in it on 5 boots of 6.

QEMU_SUITE=bookworm-backports
QEMU_FIRMWARE=(
    share/qemu/kvmvapic.bin share/qemu/linuxboot.bin share/qemu/linuxboot_dma.bin
    share/qemu/multiboot.bin share/qemu/multiboot_dma.bin share/qemu/pvh.bin
    share/seabios/bios.bin share/seabios/bios-256k.bin
)

# qemu_tree: prints a directory with qemu-system-x86_64, fw/, and version, having
# installed the libraries that the package names.
qemu_tree() {
    local dir="$CACHE/qemu" deb name stamp path tmp depends
    local debs=() libraries=()
    # What is done to it here, beside what it is.
    stamp="$(cksum <"$REPO/scripts/lib/mend-qemu") "
    for name in qemu-system-x86 qemu-system-data seabios; do
        deb="$(fetch_deb "$QEMU_SUITE" "^$name\$")"
        debs+=("$deb")
        stamp+="${deb##*/} "
    done
    depends="$(dpkg-deb -f "${debs[0]}" Depends | tr ',' '\n' | sed 's/^ *//; s/[ (|].*//')"
    for name in $depends; do
        case $name in
        lib* | zlib*) libraries+=("$name") ;;
        esac
    done
    need_packages "${libraries[@]}"
    one_at_a_time unpack-qemu
    if [[ ! -e $dir/stamp || $(<"$dir/stamp") != "$stamp" ]]; then
        tmp="$(mktemp -d "$CACHE/.qemu.XXXXXX")"
        mkdir "$tmp/fw"
        for deb in "${debs[@]}"; do
            dpkg-deb -x "$deb" "$tmp/root"
        done
        mv "$tmp/root/usr/bin/qemu-system-x86_64" "$tmp/"
        for path in "${QEMU_FIRMWARE[@]}"; do
            cp "$tmp/root/usr/$path" "$tmp/fw/"
        done
        rm -rf "$tmp/root"
        "$REPO/scripts/lib/mend-qemu" "$tmp/qemu-system-x86_64" ||
            say 'this build of QEMU is not known here: its CPU may fail now and then'
        dpkg-deb -f "${debs[0]}" Version >"$tmp/version"
        printf '%s' "$stamp" >"$tmp/stamp"
        rm -rf "$dir"
        mv -T "$tmp" "$dir" 2>/dev/null || rm -rf "$tmp"
    fi
    if ldd "$dir/qemu-system-x86_64" 2>&1 | grep 'not found' >&2; then
        die "QEMU $(<"$dir/version") lacks the libraries above: this is not a Debian 12?"
    fi
    printf '%s\n' "$dir"
}

# qemu_peer TREE: prints a directory with QEMU, its firmware, every library it
# needs and a start script, complete enough to run in the nested host.
qemu_peer() {
    local tree="$1" dir="$1/peer" library tmp
    if [[ ! -x $dir/qemu || $tree/stamp -nt $dir/qemu ]]; then
        tmp="$(mktemp -d "$tree/.peer.XXXXXX")"
        mkdir "$tmp/lib"
        cp "$tree/qemu-system-x86_64" "$tmp/"
        cp -r "$tree/fw" "$tmp/fw"
        while read -r library; do
            cp -L "$library" "$tmp/lib/"
        done < <(ldd "$tree/qemu-system-x86_64" | grep -o '/[^ ]*')
        cat >"$tmp/qemu" <<'TEXT'
#!/bin/sh
here="$(dirname "$(readlink -f "$0")")"
exec "$here/lib/ld-linux-x86-64.so.2" --library-path "$here/lib" \
    "$here/qemu-system-x86_64" -L "$here/fw" "$@"
TEXT
        chmod 755 "$tmp" "$tmp/qemu"
        rm -rf "$dir"
        mv -T "$tmp" "$dir" 2>/dev/null || rm -rf "$tmp"
    fi
    printf '%s\n' "$dir"
}
