# shellcheck shell=bash disable=SC2154 # $binary, $agent and $work are the script's
# Guests that move, or are handed over.

# moved_clock TIMES MS: the clock goes from process to process, exact to the end.
moved_clock() {
    local elf out="$work/moved-clock"
    elf="$(build_guest clock)"
    kept "$out" scripts/nested --timeout 280 --with "$binary" --with "$elf" \
        --with scripts/lib/move-loop -- \
        timeout 250 move-loop "$1" "$2" advance --kernel clock --memory 8M --cpus 2 \
        --cmdline "seconds=$(($1 * ($2 + 1000) / 1000 + 4)) strict=1" &&
        expect "MOVE-LOOP moves=$1" "$out" &&
        expect 'KVMXEN end verdict=exact' "$out"
}

# paired_clock TIMES MS
paired_clock() {
    local elf out="$work/paired-clock"
    elf="$(build_guest clock)"
    paired 300 "$1" "$2" "$out" --with "$elf" -- --kernel clock --memory 8M --cpus 2 \
        --cmdline "seconds=$(($1 * ($2 + 1200) / 1000 + 3)) strict=1" &&
        expect 'KVMXEN end verdict=exact' "$out"
}

# handed_over FILE FLAGS MOVES: what the guest of a handover said: no clock went back,
# so many moves, each with these flags.
handed_over() {
    grep -qE "KVMXEN handover reads=[1-9][0-9]* .*moves=$3 .*count=$3 backward_tsc=0 backward_system_time=0 backward_mono=0 backward_tai=0 wrong_at_line=0" "$1" &&
        [[ $(grep -cE "KVMXEN moved .*flags=($2) " "$1") -eq $3 ]] &&
        grep -qE 'KVMXEN handover-checks passed=[1-9][0-9]* failed=0' "$1"
}

# handover_saved CYCLES POLICY FLAGS: a guest gathers its CPUs, is saved and restored.
handover_saved() {
    saved handover "$1" 1500,700 "$2" 1 "moves=$1" --handover require &&
        handed_over "$work/saved-handover-$2" "$3" "$1"
}

# handover_moved TIMES: the same from process to process.
handover_moved() {
    local elf out="$work/handover-moved"
    elf="$(build_guest handover)"
    kept "$out" scripts/nested --timeout 280 --with "$binary" --with "$elf" \
        --with scripts/lib/move-loop -- \
        timeout 250 move-loop "$1" 1500,900 advance --kernel handover --memory 8M --cpus 2 \
        --handover require --cmdline "moves=$1" &&
        expect "MOVE-LOOP moves=$1" "$out" && handed_over "$out" 0xf "$1"
}

# handover_ignored: a guest that never answers is saved all the same, and it is said.
handover_ignored() {
    saved handover 2 1500,4500 advance,freeze 0 'moves=2 ignore=1' &&
        handed_over "$work/saved-handover-advance-freeze" '0xd|0x9' 2 &&
        [[ $(grep -c 'without a handover: .* within 3 s' \
            "$work/saved-handover-advance-freeze") -eq 2 ]]
}

# handover_hasty: one that lets its CPUs go before it updates its clocks sees them go back.
handover_hasty() {
    saved handover 2 1500,1500 advance,freeze 1 'moves=2 hasty=1' && return 1
    grep -E 'KVMXEN handover .* backward_mono=[1-9]' "$work/saved-handover-advance-freeze"
}

# handover_stays: gathered guests that are not moved, and one that can not be asked.
handover_stays() {
    local elf clock out="$work/handover-stays"
    elf="$(build_guest handover)"
    clock="$(build_guest clock)"
    kept "$out" scripts/nested --timeout 150 --with "$binary" --with "$elf" --with "$clock" \
        --with scripts/lib/handover-stays -- timeout 140 handover-stays &&
        expect 'HANDOVER-STAYS stays=2 refused=1' "$out"
}

# move_faults TIMES: either side is killed while a guest moves.
move_faults() {
    local elf out="$work/move-faults"
    elf="$(build_guest clock)"
    kept "$out" scripts/nested --timeout 280 --with "$binary" --with "$elf" \
        --with scripts/lib/move-faults -- \
        timeout 250 move-faults clock "$1" &&
        expect "MOVE-FAULTS rounds=$1" "$out"
}

# moves FILTER: those of tests/moves.rs.
moves() {
    local elf tree
    elf="$(build_guest handover)"
    tree="$(kernel_tree 6.12)"
    in_nested moves "$1" "$elf" "$tree/vmlinuz" "$work/agent.cpio:guest.cpio"
}
