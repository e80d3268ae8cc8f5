# shellcheck shell=bash
# An authority and the certificates of two hosts, as docs/using.md says to make them.

# certificates DIR: DIR/ca.pem, and for hosts 1 and 2 of scripts/pair DIR/N/cert.pem and
# DIR/N/key.pem.
certificates() {
    local dir="$1" host new=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc)
    mkdir -p "$dir"
    openssl req -x509 "${new[@]}" -days 3650 -subj '/CN=guests of these hosts' \
        -keyout "$dir/ca.key" -out "$dir/ca.pem" 2>/dev/null
    for host in 1 2; do
        mkdir -p "$dir/$host"
        openssl req "${new[@]}" -subj "/CN=host $host" \
            -addext "subjectAltName=IP:10.9.8.$host,IP:fd09::$host" \
            -keyout "$dir/$host/key.pem" -out "$dir/$host/request.pem" 2>/dev/null
        openssl x509 -req -in "$dir/$host/request.pem" -days 825 -copy_extensions copy \
            -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -CAcreateserial \
            -out "$dir/$host/cert.pem" 2>/dev/null
    done
}
