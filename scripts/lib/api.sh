# shellcheck shell=bash disable=SC2154  # binary and work are scripts/test's
# Cells of the control socket. Uses what scripts/test has built: $binary, $work.

# api_local: the control socket of a machine on this machine's KVM.
api_local() {
    KVM_XEN_CACHE="$CACHE" cargo test --test api -- --include-ignored --test-threads 1
}

# curl_kit DIR: curl with the libraries that it needs, to run where there are none.
curl_kit() {
    local library
    mkdir -p "$1"
    cp "$(command -v curl)" "$1/curl.bin"
    for library in $(ldd "$1/curl.bin" | grep -o '/[^ ]*'); do
        cp -L "$library" "$1/"
    done
}

# api_curl: what a person does with curl, to a Linux in the nested host.
api_curl() {
    local tree out="$work/api-curl"
    tree="$(kernel_tree 6.12)"
    curl_kit "$work/curl"
    scripts/nested --timeout 180 --with scripts/lib/api-curl --with "$work/curl:curl" \
        --with "$binary" --with "$tree/vmlinuz" --with "$work/agent.cpio:guest.cpio" -- \
        timeout 150 sh ./api-curl >"$out" || {
        cat "$out"
        return 1
    }
    cat "$out"
    expect '"state":"paused"' "$out" && expect '"state":"running"' "$out" &&
        expect 'kvm_xen_vcpus 2' "$out" && expect 'status 405' "$out" &&
        expect 'mode 600' "$out" && expect 'file gone' "$out" && expect ', exit 0' "$out"
}
