#!/usr/bin/env python3
"""How long `lemniscate train` takes from its start to its first step, on images of CIFAR-10's number and size.

    benches/startup.py                       generated noise in CIFAR-10's binary layout
    benches/startup.py --data DIR --rounds 9 --flags "--nce-k 0"

Trains for one step, in a new process each time, and prints medians. The first round, which may read the images from the
disk, is not counted. The start is that of the process: loading libtorch is part of it.
"""
import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import PROGRAM, random_cifar


def first_step(data, flags, out):
    """Seconds of one run, by what they went into."""
    started = time.perf_counter()
    subprocess.run([PROGRAM, "train", data, *flags, "--quiet", "--max-steps", "1", "--out", out], check=True)
    whole = time.perf_counter() - started
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    step = next(record for record in records if record["kind"] == "step")
    if "startup_s" not in step:
        sys.exit("this system does not say when a process was started")
    wait = step["data_ms"] / 1e3
    return {
        "start to first step": step["startup_s"],
        "start to first step with its images there": step["startup_s"] + wait,
        "the step, without waiting for images": step["step_ms"] / 1e3 - wait,
        "whole command": whole,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="images as train takes them [default: 60,000 of noise]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flags", default="", help="more flags of train, in one argument")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        data = args.data or random_cifar(scratch)
        flags = shlex.split(args.flags)
        rounds = [first_step(data, flags, scratch / f"run-{number}") for number in range(args.rounds + 1)][1:]
    print(f"medians of {args.rounds} rounds, s (fastest to slowest)\n")
    for name in rounds[0]:
        times = [each[name] for each in rounds]
        print(f"{name:<44}{statistics.median(times):6.2f}  ({min(times):.2f} to {max(times):.2f})")
    print(json.dumps({name: statistics.median(each[name] for each in rounds) for name in rounds[0]}))


if __name__ == "__main__":
    main()
