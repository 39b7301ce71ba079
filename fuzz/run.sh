#!/usr/bin/env bash
# Fuzzes one reader, seeded with the fixtures:  fuzz/run.sh TARGET [SECONDS]
# All of them, one after the other:             fuzz/run.sh all [SECONDS EACH]
#
# Needs `cargo install cargo-fuzz`. The sanitizer is a nightly feature, which RUSTC_BOOTSTRAP allows on the pinned
# toolchain. Any crash, a run of over 10 seconds, and memory beyond the bound end it with the input that did it.
set -euo pipefail
cd "$(dirname "$0")/.."
targets=$(cd fuzz/targets && grep -l fuzz_target ./*.rs | sed 's|^\./||; s|\.rs$||' | tr '\n' ' ')
target=${1:?a target, or all: $targets}
seconds=${2:-600}
if [ "$target" = all ]; then
    failed=""
    for target in $targets; do
        "$0" "$target" "$seconds" || failed="$failed $target"
    done
    [ -z "$failed" ] || { echo "found something:$failed" >&2; exit 1; }
    exit 0
fi
seeds=$(mktemp -d)
trap 'rm -rf "$seeds" /dev/shm/lemniscate-fuzz.*' EXIT
python3 fuzz/seeds.py "$target" "$seeds"
most=512
length=262144
case $target in
    # Its own bound is 16 MiB; see the target. TIFF's decoder allows itself 256 MiB for a tag's values before it hears of that.
    image) most=300 length=65536 ;;
    # TOML of a few lines; long text tries nothing new.
    config | list | run_folder) length=16384 ;;
esac
corpus=fuzz/corpus/$target
mkdir -p "$corpus"
RUSTC_BOOTSTRAP=1 cargo fuzz run --release "$target" "$corpus" "$seeds" -- \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb="$most" -max_len="$length" -print_final_stats=1
