#!/bin/sh
# Every measurement of docs/gpu.md on a machine with an NVIDIA GPU, beside PyTorch on the same card. `--dry-run` does the same
# at toy size on the CPU, where its figures mean nothing. `--help` lists what can be chosen.
set -eu
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu.py" "$@"
