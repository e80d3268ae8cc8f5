# shellcheck shell=bash
# Fetches .deb files of any Debian suite without touching the machine's own apt
# configuration: every suite has its own lists under $CACHE/apt. The mirror is
# the one that the machine's own sources name.

FETCH_LISTS_MAX_AGE_MIN=$((12 * 60))

# debian_mirror SUITE: the URI from which this machine takes packages of SUITE:
# the one that its sources name for it, else that of its own release (for
# "…-security": of another security suite). Fails when there is none.
debian_mirror() {
    local suite="$1" uri release codename fallback=
    # shellcheck source=/dev/null
    codename="$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")"
    # shellcheck disable=SC2016  # the $(…) are apt's own format fields
    while read -r uri release; do
        case $release in
        "$suite")
            printf '%s\n' "$uri"
            return 0
            ;;
        *-security) [[ $suite != *-security ]] || fallback="$uri" ;;
        "$codename" | stable) [[ $suite == *-security ]] || fallback="$uri" ;;
        esac
    done < <(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 2>/dev/null)
    [[ -n $fallback ]] && printf '%s\n' "$fallback"
}

# A suite here may be several joined by "+", read as one: "bookworm+bookworm-security",
# and end in "@" and an architecture other than amd64: "bookworm@i386".

# suite_options SUITE: fills SUITE_OPTIONS with what makes apt use its lists.
suite_options() {
    local suite="$1" dir="$CACHE/apt/$1" architecture=amd64
    [[ $suite != *@* ]] || architecture="${suite##*@}"
    mkdir -p "$dir/none" "$dir/lists/partial" "$dir/cache/archives/partial"
    SUITE_OPTIONS=(
        -oDir::Etc::sourcelist="$dir/$suite.list"
        -oDir::Etc::sourceparts="$dir/none"
        -oDir::Etc::preferences=/dev/null
        -oDir::Etc::preferencesparts="$dir/none"
        -oDir::State::lists="$dir/lists"
        -oDir::Cache="$dir/cache"
        -oAcquire::Languages=none
        -oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
        -oAcquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled=false
        -oAcquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled=false
        -oAcquire::Retries=3
        -oAPT::Architecture="$architecture"
        -oAPT::Architectures="$architecture"
        -oAPT::Sandbox::User=root
        -oAPT::Update::Post-Invoke=
        -oDebug::NoLocking=1
    )
}

# suite_update SUITE [force]: brings the lists of the suite up to date.
suite_update() {
    local suite="$1" force="${2:-}" dir="$CACHE/apt/$1" part mirror
    suite_options "$suite"
    if [[ -z $force && -n $(find "$dir/updated" -mmin "-$FETCH_LISTS_MAX_AGE_MIN" 2>/dev/null) ]]; then
        return 0
    fi
    : >"$dir/$suite.list"
    local suites="${suite%@*}"
    for part in ${suites//+/ }; do
        if mirror="$(debian_mirror "$part")"; then
            printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' \
                "$mirror" "$part" >>"$dir/$suite.list"
        fi
    done
    [[ -s $dir/$suite.list ]] ||
        die "this machine's apt sources name no Debian mirror for '$suite': add its own release to them"
    say "reading the package lists of $suite"
    if quietly "$dir/update.log" apt-get "${SUITE_OPTIONS[@]}" -q update &&
        ! grep -q '^[WE]: Failed to fetch' "$dir/update.log"; then
        touch "$dir/updated"
    elif [[ -e $dir/updated ]]; then
        say "the lists of $suite could not be refreshed; using the ones from before"
    else
        die "the package lists of $suite could not be read (log: $dir/update.log)"
    fi
}

# suite_newest SUITE REGEX: the newest package whose name matches, or nothing.
# Names carry the version, so a version sort of the names finds it.
suite_newest() {
    suite_options "$1"
    apt-cache "${SUITE_OPTIONS[@]}" search --names-only "$2" |
        cut -d' ' -f1 |
        sed 's/-cloud-amd64/ &/' | sort -V -k1,1 | tr -d ' ' | tail -n 1
}

# fetch_deb SUITE REGEX: prints the path of the newest matching .deb, from the
# cache when it is there. Repeats with fresh lists when the mirror has dropped
# the version that the lists name. KVM_XEN_REFRESH=1 looks for newer versions.
fetch_deb() {
    local suite="$1" regex="$2" dir="$CACHE/debs/$1" key package attempt file
    mkdir -p "$dir"
    key="$dir/$(printf '%s' "$regex" | tr -c 'A-Za-z0-9.\n' _)"
    exec {fetch_lock}>"$CACHE/fetch.lock"
    flock "$fetch_lock"
    if [[ -z ${KVM_XEN_REFRESH:-} && -s $key && -s $dir/$(<"$key") ]]; then
        printf '%s\n' "$dir/$(<"$key")"
        exec {fetch_lock}>&-
        return 0
    fi
    for attempt in '' force force; do
        suite_update "$suite" "$attempt"
        package="$(suite_newest "$suite" "$regex")"
        [[ -n $package ]] || continue
        rm -rf "$dir/partial"
        mkdir -p "$dir/partial"
        say "fetching $package ($suite)"
        if (cd "$dir/partial" && quietly "$dir/download.log" \
            apt-get "${SUITE_OPTIONS[@]}" -q download "$package"); then
            file="$(find "$dir/partial" -name '*.deb' -printf '%f\n' | head -n 1)"
            [[ -n $file ]] || continue
            mv "$dir/partial/$file" "$dir/$file"
            printf '%s' "$file" >"$key"
            say "got $(dpkg-deb -f "$dir/$file" Package) $(dpkg-deb -f "$dir/$file" Version)"
            printf '%s\n' "$dir/$file"
            exec {fetch_lock}>&-
            return 0
        fi
    done
    if [[ -s $key && -s $dir/$(<"$key") ]]; then
        say "nothing newer could be fetched; using $(<"$key")"
        printf '%s\n' "$dir/$(<"$key")"
        exec {fetch_lock}>&-
        return 0
    fi
    die "no package in $suite matches '$regex', or the mirror does not answer (log: $dir/download.log)"
}
