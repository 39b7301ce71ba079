#!/usr/bin/env python3
"""Measures lemniscate on an NVIDIA GPU beside PyTorch on the same card, in turn, and prints tables of medians.

    benches/gpu.sh --peer FILE --cifar DIR                 everything but learning
    benches/gpu.sh --cifar DIR --only learn                200 epochs of CIFAR-10 as published, twice
    benches/gpu.sh --cifar DIR --only strong --seeds 3     the preset cifar-strong
    benches/gpu.sh --dry-run                               toy sizes on the CPU: whether this script works

FILE is a PyTorch program of the same method with the flags that `peer_train` passes; without it (or without a Python that
has torch) only our side is measured. Sides alternate within each round; ratios are medians of the rounds' ratios.
"""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

def lines_of(command, **more):
    """The JSON objects that `command` prints; none, with a word about it, where it fails."""
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **more)
    if done.returncode != 0:
        print(f"\nfailed: {' '.join(command)}\n{done.stderr[-800:]}", flush=True)
        return []
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

def noise_cifar(folder, images):
    """Noise in CIFAR's binary layout: enough for timing."""
    folder.mkdir(exist_ok=True)
    generator = random.Random(0)
    for number in range(1, 6):
        rows = images // 5
        (folder / f"data_batch_{number}.bin").write_bytes(
            b"".join(bytes([i % 10]) + generator.randbytes(3072) for i in range(rows)))
    (folder / "test_batch.bin").write_bytes(b"".join(bytes([i % 10]) + generator.randbytes(3072) for i in range(100)))
    return folder

def photo_folder(folder, python, images):
    """Photos for the peer, which reads nothing but files; made by its own Python."""
    code = (
        "import sys, os, numpy as np; from PIL import Image\n"
        "root, n = sys.argv[1], int(sys.argv[2]); r = np.random.default_rng(0)\n"
        "for i in range(n):\n"
        "    d = os.path.join(root, 'train', str(i % 4)); os.makedirs(d, exist_ok=True)\n"
        "    Image.fromarray(r.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(os.path.join(d, f'{i}.jpg'))\n")
    subprocess.run([str(python), "-c", code, str(folder), str(images)], check=True)
    return folder

class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        self.dry = arguments.dry_run
        self.device = "cpu" if self.dry else "cuda"
        self.program = Path(arguments.program)
        self.scratch = Path(tempfile.mkdtemp(prefix="lemniscate-gpu-"))
        self.python = arguments.python
        self.failed = False
        # A dry run is there to be run anywhere, beside anything.
        self.one_thread = ["--threads", 1] if self.dry else []
        if self.dry:
            os.environ["OMP_NUM_THREADS"] = "1"

    def ours_train(self, data, steps, flags):
        """Images per second over `steps` steps after a tenth as many, end to end, from the run's own metrics."""
        out = Path(tempfile.mkdtemp(dir=self.scratch)) / "run"
        warmup = max(2, steps // 10)
        command = [self.program, "train", data, "--device", self.device, "--monitor", "none", "--quiet", "--skip-scan",
                   "--save-every", 1e5, "--max-steps", warmup + steps, "--out", out, *flags, *self.one_thread]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode != 0:
            self.failed = True
            print(f"\nfailed: {' '.join(map(str, command))}\n{done.stderr[-800:]}", flush=True)
            return None
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        timed = [record for record in records if record["kind"] == "step"][warmup:]
        seconds = sum(record["step_ms"] for record in timed) / 1e3
        return sum(record["images_per_s"] * record["step_ms"] / 1e3 for record in timed) / seconds

    def peer_train(self, data, arch, batch, k, steps, compiled, resident):
        """The peer's images per second; None where there is no peer."""
        if not (self.python and self.arguments.peer):
            return None
        command = [self.python, self.arguments.peer, data, "--arch", arch, "--mode", "classic" if self.dry else "modern", "--nce-k", k, "-b", batch,
                   "--steps", steps, "--warmup", max(2, steps // 10), "--device", self.device, "-j", self.arguments.workers]
        command += ["--compile"] * compiled + ["--no-data"] * resident
        found = lines_of(command)
        return found[-1]["img_s"] if found else None

    def beside(self, title, ours, theirs):
        """One table: our images per second, and each peer's, in alternating rounds."""
        rounds = [(ours(), [call() for _, call in theirs]) for _ in range(self.arguments.rounds)]
        mine = [left for left, _ in rounds if left]
        print(f"\n### {title}\n\n| | images/s | lemniscate is faster by |\n|---|---|---|", flush=True)
        print(f"| lemniscate | {self.median(mine)} | |")
        for number, (name, _) in enumerate(theirs):
            pairs = [(left, right[number]) for left, right in rounds if left and right[number]]
            ratio = self.ratio(f"{statistics.median(a / b for a, b in pairs):.2f}×" if pairs else None)
            print(f"| {name} | {self.median([b for _, b in pairs])} | {ratio} |")
        sys.stdout.flush()

    def ratio(self, text):
        """The two sides of a dry run are not of the same size."""
        return "dry run" if self.dry else text or "not measured"

    @staticmethod
    def median(values):
        return f"{statistics.median(values):,.0f}" if values else "not measured"

    def cifar(self):
        data = self.arguments.cifar or noise_cifar(self.scratch / "cifar", 200 if self.dry else 50_000)
        batch, steps = (8, 3) if self.dry else (128, 300)
        small = ["--width", 8] if self.dry else []
        for k in (4096, 0):
            ours = lambda: self.ours_train(data, steps, ["--preset", "cifar", "-b", batch, "--nce-k", min(k, 64) if self.dry else k, *small])
            peer = lambda compiled: lambda: self.peer_train(data, "cifar-resnet18", batch, min(k, 64) if self.dry else k, steps, compiled, False)
            theirs = [("PyTorch, modern", peer(False))] + ([] if self.dry else [("PyTorch, modern, compiled", peer(True))])
            self.beside(f"CIFAR ResNet-18, batch {batch}, K={k}, data included", ours, theirs)

    def photos(self):
        size, batch, steps, images = (32, 4, 2, 12) if self.dry else (224, 256, 60, 2048)
        small = ["--width", 8] if self.dry else []
        folder = photo_folder(self.scratch / "photos", self.python, images) if self.python and self.arguments.peer else None
        # Images that are on the device from the start: generated ones, a little larger than a view.
        data = f"synthetic:{images}x{size * 8 // 7}"
        for arch in ("resnet50", "resnet18"):
            ours = lambda: self.ours_train(data, steps, ["--preset", "imagenet", "--arch", arch, "--image-size", size, "-b", batch, *small])
            peer = lambda compiled: lambda: self.peer_train(folder, arch, batch, 4 if self.dry else 4096, steps, compiled, True)
            theirs = [("PyTorch, modern", peer(False))] + ([] if self.dry else [("PyTorch, modern, compiled", peer(True))])
            self.beside(f"{arch}, {size} px, batch {batch}, images on the device", ours, theirs)

    def objectives(self):
        sizes = [2000, 8, 50] if self.dry else [1_281_167, 256, 50_000]
        ours_command = ["cargo", "bench", "--quiet", "--bench", "gpu", "--", self.device, *sizes]
        if self.arguments.bench:
            ours_command = [self.arguments.bench, self.device, *sizes]
        rounds = []
        for _ in range(self.arguments.rounds):
            theirs = lines_of([self.python, HERE / "gpu_peer.py", self.device, *sizes]) if self.python else []
            rounds.append((lines_of(ours_command), theirs))
        key = lambda record: (record["case"], record["k"])
        cases = [key(record) for record in rounds[0][0]]
        self.failed |= not cases
        print(f"\n### N = {sizes[0]:,}, B = {sizes[1]}, D = 128; kNN of {sizes[2]:,} queries; milliseconds\n")
        print("| | K or k | lemniscate | PyTorch | ratio |\n|---|---|---|---|---|")
        for case in cases:
            of = lambda side: [record["ms"] for pair in rounds for record in pair[side] if key(record) == case and record["ms"]]
            mine, peers = of(0), of(1)
            ratio = self.ratio(f"{statistics.median(peers) / statistics.median(mine):.2f}×" if mine and peers else None)
            text = lambda values: f"{statistics.median(values):.2f}" if values else "not measured"
            print(f"| {case[0]} | {case[1]} | {text(mine)} | {text(peers)} | {ratio} |")
        sys.stdout.flush()

    def learn(self):
        k = 16 if self.dry else 4096
        self.to_the_end([("as published, full softmax", ["--preset", "cifar", "--nce-k", 0], 0),
                         (f"as published, NCE, K = {k}", ["--preset", "cifar", "--nce-k", k], 0)])

    def strong(self):
        self.to_the_end([("cifar-strong", ["--preset", "cifar-strong"], seed) for seed in range(self.arguments.seeds)])

    def to_the_end(self, runs):
        data = self.arguments.cifar or (f"synthetic:96x16" if self.dry else None)
        if data is None:
            sys.exit("error: learning needs --cifar DIR")
        print("\n### CIFAR-10, weighted kNN with 200 neighbours; the monitor asks the live bank after each epoch\n")
        print("| settings | seed | top-1 | minutes | minutes to 60 % | to 80.8 % |\n|---|---|---|---|---|---|")
        toy = ["--width", 4, "--image-size", 16, "-b", 16, "--epochs", 1, "--warmup-epochs", 0] if self.dry else []
        for name, settings, seed in runs:
            out = self.scratch / f"learn-{name.replace(' ', '-')}-{seed}"
            started = time.time()
            command = [self.program, "train", data, "--device", self.device, *settings, "--seed", seed, "--quiet", "--out", out,
                       *toy, *self.one_thread]
            subprocess.run([str(part) for part in command], check=True)
            minutes = (time.time() - started) / 60
            done = subprocess.run([str(p) for p in [self.program, "eval", out / "last.ckpt", "--device", self.device, "--bank", "recomputed",
                                                    "--json", "-k", 200]], check=True, capture_output=True, text=True)
            top1 = 100 * json.loads(done.stdout.splitlines()[-1])["top1"]
            reached = [self.minutes_to(percent, out / "metrics.jsonl") for percent in (60, 80.8)]
            print(f"| {name} | {seed} | {top1:.2f} | {minutes:.1f} | {' | '.join(reached)} |", flush=True)

    def minutes_to(self, percent, metrics):
        """When weighted kNN on the live bank first saw `percent`, training and measuring included."""
        seconds = 0
        for record in map(json.loads, open(metrics)):
            if record["kind"] == "step":
                seconds += record["step_ms"] / 1e3
            elif record["kind"] == "eval" and record["metric"] == "knn_top1":
                seconds += record["seconds"]
                if record["value"] >= percent:
                    return f"{seconds / 60:.1f}"
        return "not reached"

    def card(self):
        if self.dry:
            return "a dry run on the CPU: no figure below means anything"
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True).stdout.strip() or "unknown card"

def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on the CPU, one round")
    parser.add_argument("--peer", type=Path, help="the PyTorch program to be measured beside ours")
    parser.add_argument("--python", help="a Python with torch and torchvision [default: python3, if it has them]")
    parser.add_argument("--program", default=ROOT / "target/release/lemniscate", help="our program")
    parser.add_argument("--bench", type=Path, help="the built benchmark `gpu` [default: through cargo bench]")
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10 binary files [default for timing: noise]")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="the peer's loader processes")
    parser.add_argument("--rounds", type=int, help="alternating rounds [default: 3]")
    parser.add_argument("--seeds", type=int, default=3, help="runs of cifar-strong, each with another seed [default: 3]")
    parser.add_argument("--only", default="cifar,photos,objectives", help="some of cifar,photos,objectives,learn,strong")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.dry_run else 3)
    unknown = set(arguments.only.split(",")) - {"cifar", "photos", "objectives", "learn", "strong"}
    if unknown:
        parser.error(f"--only knows cifar, photos, objectives, learn and strong, not {', '.join(sorted(unknown))}")
    if arguments.python is None:
        has_torch = subprocess.run([sys.executable, "-c", "import torch, torchvision"], capture_output=True).returncode == 0
        arguments.python = sys.executable if has_torch else None
    if not Path(arguments.program).is_file():
        parser.error(f"{arguments.program} is not there; make build first, or name another with --program")
    bench = Bench(arguments)
    print(f"card: {bench.card()}; {arguments.rounds} alternating rounds, medians"
          + ("" if arguments.python else "; no Python with torch, so PyTorch is not measured"), flush=True)
    for part in arguments.only.split(","):
        getattr(bench, part)()
    sys.exit(1 if bench.failed else 0)

if __name__ == "__main__":
    main()
