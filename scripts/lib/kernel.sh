# shellcheck shell=bash
# Debian's cloud kernels, by series: where they come from, and how to get the
# image, the plain ELF file and single modules out of a package.

# kernel_debs SERIES: fills KERNEL_DEBS with the packages of the newest kernel.
kernel_debs() {
    local series="$1" suite
    KERNEL_DEBS=()
    case $series in
    6.1-686-pae)
        # A 32-bit kernel with PAE paging, the only kind that speaks Xen.
        KERNEL_DEBS=("$(fetch_deb bookworm@i386 '^linux-image-6[.]1[.][0-9.-]*-686-pae$')")
        return
        ;;
    5.10) suite=bullseye ;;
    6.1) suite=bookworm+bookworm-security ;;
    6.12) suite=bookworm-backports+bookworm-security ;;
    7.*) suite=sid ;;
    *) die "unknown kernel series '$series': known are 5.10, 6.1, 6.1-686-pae, 6.12 and 7.2" ;;
    esac
    local re="${series//./\\.}" image modules
    if [[ $suite == sid ]]; then
        image="$(fetch_deb "$suite" "^linux-binary-${re}[.].*-cloud-amd64\$")"
        modules="$(fetch_deb "$suite" "^linux-modules-${re}[.].*-cloud-amd64\$")"
        KERNEL_DEBS=("$image" "$modules")
    else
        image="$(fetch_deb "$suite" "^linux-image-${re}[.].*-cloud-amd64\$")"
        KERNEL_DEBS=("$image")
    fi
}

# kernel_tree SERIES: prints a directory with vmlinuz, config and modules/.
kernel_tree() {
    local series="$1" dir="$CACHE/kernels/$1" deb stamp modules
    KERNEL_DEBS=()
    kernel_debs "$series"
    stamp="${KERNEL_DEBS[*]##*/}"
    one_at_a_time unpack-kernel
    if [[ ! -e $dir/stamp || $(<"$dir/stamp") != "$stamp" ]]; then
        local tmp
        mkdir -p "$CACHE/kernels"
        tmp="$(mktemp -d "$CACHE/kernels/.new.XXXXXX")"
        for deb in "${KERNEL_DEBS[@]}"; do
            dpkg-deb -x "$deb" "$tmp/root"
        done
        find "$tmp/root" -name 'vmlinuz*' -type f -exec mv {} "$tmp/vmlinuz" \;
        find "$tmp/root" -name 'config-*' -type f -exec mv {} "$tmp/config" \;
        [[ -s $tmp/vmlinuz ]] || die "no vmlinuz in ${KERNEL_DEBS[*]##*/}"
        modules="$(find "$tmp/root" -type d -path '*/modules/*' -name kernel | head -n 1)"
        [[ -n $modules ]] || die "no modules in ${KERNEL_DEBS[*]##*/}"
        mv "$modules" "$tmp/modules"
        basename "$(dirname "$modules")" >"$tmp/release"
        rm -rf "$tmp/root"
        printf '%s' "$stamp" >"$tmp/stamp"
        rm -rf "$dir"
        mv -T "$tmp" "$dir" 2>/dev/null || rm -rf "$tmp"
    fi
    printf '%s\n' "$dir"
}

# kernel_modules TREE DIR NAME…: writes the modules and what they depend on,
# decompressed, into DIR, and their names in the order of loading to DIR/order.
# Names that are built into the kernel (no module file) are passed over.
kernel_modules() {
    local tree="$1" dir="$2" name file depends
    shift 2
    touch "$dir/order"
    for name in "$@"; do
        name="${name//-/_}"
        ! grep -qx "$name" "$dir/order" || continue
        file="$(find "$tree/modules" -name "${name//_/[-_]}.ko*" | head -n 1)"
        [[ -n $file ]] || continue
        case $file in
        *.xz) xz -dc "$file" >"$dir/$name.ko" ;;
        *.zst) zstd -qdc "$file" >"$dir/$name.ko" ;;
        *) cp "$file" "$dir/$name.ko" ;;
        esac
        depends="$(tr '\0' '\n' <"$dir/$name.ko" | sed -n 's/^depends=//p' | head -n 1)"
        # shellcheck disable=SC2086  # a list of names
        [[ -z $depends ]] || kernel_modules "$tree" "$dir" ${depends//,/ }
        printf '%s\n' "$name" >>"$dir/order"
    done
}

# kernel_vmlinux TREE: prints the path of the ELF file inside vmlinuz. The boot
# protocol's header (offset 0x1f1 sector count, 0x248 payload offset, 0x24c its
# length) says where the compressed payload is; its magic says how it is packed.
kernel_vmlinux() {
    local tree="$1" image="$1/vmlinuz" sectors offset length start magic
    if [[ ! -s $tree/vmlinux ]]; then
        sectors="$(od -An -tu1 -j $((0x1f1)) -N1 "$image" | tr -d ' ')"
        offset="$(od -An -tu4 -j $((0x248)) -N4 "$image" | tr -d ' ')"
        length="$(od -An -tu4 -j $((0x24c)) -N4 "$image" | tr -d ' ')"
        start=$(((sectors + 1) * 512 + offset))
        magic="$(od -An -tx1 -j "$start" -N4 "$image" | tr -d ' \n')"
        local unpack
        case $magic in
        1f8b*) unpack=(gzip -dc) ;;
        28b52ffd) unpack=(zstd -qdc) ;;
        fd377a58) unpack=(xz -dc) ;;
        02214c18) unpack=(lz4 -dc) ;;
        *) die "unknown compression (magic $magic) in $image" ;;
        esac
        # The last four bytes are the unpacked size, which is no part of the
        # stream: tools complain about it and still write everything.
        tail -c +$((start + 1)) "$image" | head -c $((length - 4)) |
            "${unpack[@]}" >"$tree/vmlinux.new" 2>/dev/null || true
        [[ "$(head -c 4 "$tree/vmlinux.new" | tail -c 3)" == ELF ]] ||
            die "the payload of $image is not an ELF file"
        mv "$tree/vmlinux.new" "$tree/vmlinux"
    fi
    printf '%s\n' "$tree/vmlinux"
}
