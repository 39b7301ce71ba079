#!/usr/bin/env bash
# Fuzzes one reader, seeded with the fixtures:  fuzz/run.sh packed|pickle|torch_legacy|torch_zip [SECONDS]
#
# Needs `cargo install cargo-fuzz`. The sanitizer is a nightly feature, which RUSTC_BOOTSTRAP allows on the pinned
# toolchain. Any crash, a run of over 10 seconds, and memory beyond the bound end it with the input that did it.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:?a target: packed, pickle, torch_legacy or torch_zip}
seconds=${2:-600}
seeds=$(mktemp -d)
trap 'rm -rf "$seeds"' EXIT
fixtures=tests/fixtures/torch
case $target in
    packed) cp tests/fixtures/packed/*.pack "$seeds" ;;
    pickle)
        # The pickles inside of archives, and legacy streams, which begin with three of them.
        for archive in "$fixtures"/*.zip.pth "$fixtures"/*.big.pth; do
            python3 -c 'import sys, zipfile
z = zipfile.ZipFile(sys.argv[1])
sys.stdout.buffer.write(z.read(next(n for n in z.namelist() if n.endswith("data.pkl"))))' \
                "$archive" > "$seeds/$(basename "$archive").pkl"
        done
        for stream in "$fixtures"/*.legacy.pth; do
            python3 -c 'import sys
data = open(sys.argv[1], "rb").read()
end = lambda start: data.index(b".", start) + 1
sys.stdout.buffer.write(data[end(end(0)):])' "$stream" > "$seeds/$(basename "$stream").pkl"
        done
        ;;
    torch_legacy) cp "$fixtures"/*.legacy.pth "$fixtures"/*.tar.pth "$fixtures"/*.t7 "$fixtures"/*.tar "$seeds" ;;
    torch_zip) cp "$fixtures"/*.zip.pth "$fixtures"/*.big.pth "$fixtures"/quantised.pth "$fixtures"/script.pt "$seeds" ;;
esac
corpus=fuzz/corpus/$target
mkdir -p "$corpus"
RUSTC_BOOTSTRAP=1 cargo fuzz run --release "$target" "$corpus" "$seeds" -- \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=512 -max_len=262144 -print_final_stats=1
