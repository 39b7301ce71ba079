#!/usr/bin/env python3
"""Measures lemniscate beside PyTorch on this machine, in turn, and prints a table of medians and ratios.

    make bench                                      generated data, everything
    benches/side_by_side.py --cifar DIR --photos DIR --rounds 5 --only train,loader,objective

Sides alternate within each round, so a busy machine slows both; ratios are medians of the rounds' ratios. PyTorch
and torchvision are installed once into a virtual environment in the cache, or taken from --python.
"""
import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAM = HERE.parent / "target/release/lemniscate"


def peer_python():
    """The Python of a virtual environment with torch and torchvision, made on first use."""
    cache = Path(os.environ.get("LEMNISCATE_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = cache / "lemniscate-bench-venv"
    python = home / "bin/python"
    if not (home / "complete").exists():
        print("installing PyTorch and torchvision for comparison (several GB, once)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "torch==2.11.0", "torchvision", "numpy", "pillow"], check=True)
        (home / "complete").touch()
    return python


def run(command):
    """The last JSON object that `command` prints."""
    output = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def random_cifar(folder, images=10_000):
    """Noise in CIFAR's binary layout: enough for timing."""
    generator = random.Random(0)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for name in names:
        (folder / name).write_bytes(b"".join(bytes([i % 10]) + generator.randbytes(3072) for i in range(images)))
    return folder


def ours_train(data, preset, arch, batch, k, precision, steps, warmup, scratch):
    """Images per second and the parts of a step, from a run's own metrics."""
    out = Path(tempfile.mkdtemp(dir=scratch)) / "run"
    flags = ["--preset", preset, "--arch", arch, "--batch-size", batch, "--nce-k", k, "--precision", precision,
             "--monitor", "none", "--quiet", "--max-steps", warmup + steps, "--out", out]
    subprocess.run([str(p) for p in [PROGRAM, "train", data, *flags]], check=True)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timed = [r for r in records if r["kind"] == "step"][warmup:]
    seconds = sum(r["step_ms"] for r in timed) / 1e3
    parts = ("data_ms", "forward_ms", "objective_ms", "backward_ms", "update_ms")
    return {"images_per_s": len(timed) * batch / seconds, **{p: statistics.median(r[p] for r in timed) for p in parts}}


def compare(title, rounds, ours, theirs):
    """Alternates the two, prints each key's medians and ratio."""
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    print(f"\n### {title}\n\n| | lemniscate | PyTorch | ratio |\n|---|---|---|---|")
    for key in pairs[0][0]:
        timed = key.endswith(("_ms", "per_s")) or " K=" in key
        if not timed or key not in pairs[0][1]:
            continue
        left, right = ([pair[side][key] for pair in pairs] for side in (0, 1))
        faster_is_more = key.endswith("per_s")
        ratios = [(a / b if faster_is_more else b / a) if a and b else float("nan") for a, b in zip(left, right)]
        left, right = statistics.median(left), statistics.median(right)
        # Of waiting for nothing there is no ratio.
        ratio = f"{statistics.median(ratios):.2f}×" if min(left, right) >= 0.1 else ""
        print(f"| {key} | {left:.1f} | {right:.1f} | {ratio} |")
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10 binary files [default: generated noise]")
    parser.add_argument("--photos", type=Path, help="folder of JPEG photos for the loader at 224 px")
    parser.add_argument("--python", help="a Python that has torch and torchvision")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", default="train,photos,loader,objective")
    args = parser.parse_args()
    python = args.python or peer_python()
    wanted = args.only.split(",")
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = next((line.split(":")[1].strip() for line in about.splitlines() if line.startswith("model name")), platform.processor())
    print(f"machine: {cpu}, {os.cpu_count()} cores; {args.rounds} alternating rounds, medians", flush=True)
    # PyTorch as published, and at its best: bf16 where there are instructions for it, and compiled if that is faster.
    best = "modern" if "avx512_bf16" in about else "last"
    modes = [("classic", False), (best, False), (best, True)]
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)

        def training(title, data, preset, arch, batch, k, mode, compiled):
            precision = "fp32" if mode == "classic" else "auto"
            flags = ["--mode", mode, "--arch", arch, "--batch-size", batch, "--n-negatives", k, "--steps", args.steps]
            flags += ["--compile"] if compiled else []
            title = f"Training, {title}, batch {batch}, {precision} beside PyTorch {mode}{', compiled' if compiled else ''}"
            compare(title, args.rounds,
                    lambda: ours_train(data, preset, arch, batch, k, precision, args.steps, 3, scratch),
                    lambda: run([python, HERE / "torch_train.py", data, *flags])[-1])

        if "train" in wanted:
            data = args.cifar or random_cifar(scratch)
            for k in (4096, 0):
                for mode, compiled in modes:
                    training(f"CIFAR ResNet-18, K={k}", data, "cifar", "resnet18", 128, k, mode, compiled)
        if "photos" in wanted and args.photos:
            for arch, batch in (("resnet18", 32), ("resnet50", 16)):
                for mode, compiled in modes:
                    training(f"{arch} at 224 px, K=4096", args.photos, "imagenet", arch, batch, 4096, mode, compiled)
        if "loader" in wanted and args.photos:
            for size, first in ((224, False), (224, True), (32, False)):
                timing = [args.photos, "--size", size, "--seconds", 5]
                epoch = ", a run's first epoch" if first else ""
                compare(f"Loading on one core, {size} px from {args.photos.name}{epoch}", args.rounds,
                        lambda: run(["cargo", "bench", "--quiet", "--bench", "loader", "--", *timing, *["--whole"] * first])[-1],
                        lambda: run([python, HERE / "loader.py", *timing])[-1])
            for form in ("original", "jpeg", "raw"):
                packed = scratch / f"{form}.pack"
                run([PROGRAM, "pack", args.photos, packed, "--as", form])
                timing = ["--size", 224, "--seconds", 5]
                compare(f"Loading on one core, 224 px, packed as {form} beside torchvision's files", args.rounds,
                        lambda: run(["cargo", "bench", "--quiet", "--bench", "loader", "--", packed, *timing])[-1],
                        lambda: run([python, HERE / "loader.py", args.photos, *timing])[-1])
        if "objective" in wanted:
            def by_case(records):
                return {f"{r['case']} N={r['n']} B={r['b']} K={r['k']}": r["ms"] for r in records}

            ours = lambda: by_case(run(["cargo", "bench", "--quiet", "--bench", "objective"]))
            theirs = lambda: by_case(run([python, HERE / "objective.py"]))
            compare("Loss and gradient, milliseconds", args.rounds, ours, theirs)


if __name__ == "__main__":
    main()
