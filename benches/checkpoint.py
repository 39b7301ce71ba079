#!/usr/bin/env python3
"""Opens a checkpoint of the published program's size in lemniscate and in PyTorch, in turn: seconds and peak memory.

    benches/checkpoint.py [--images N] [--rounds R]          (run by a Python with torch and torchvision)

The file has what the released ResNet-50 has: weights, SGD momentum, and the bank of all ImageNet training images, about
850 MB. PyTorch's time is torch.load alone, its imports not counted; lemniscate's is the whole process. `inspect` reads the
tree and matches the network, `import` verifies and writes every byte anew.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

PROGRAM = Path(__file__).resolve().parent.parent / "target/release/lemniscate"


def stand_in():
    """A module class under the published path, as unpickling wants one."""
    from torch import nn

    class NCEAverage(nn.Module):
        pass

    NCEAverage.__module__, NCEAverage.__qualname__ = "lib.NCEAverage", "NCEAverage"
    for name in ("lib", "lib.NCEAverage"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["lib.NCEAverage"].NCEAverage = NCEAverage
    return NCEAverage


def write(folder, images):
    import torch
    import torchvision

    network = torchvision.models.resnet50(num_classes=128)
    sgd = torch.optim.SGD(network.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    sgd.step()
    bank = stand_in()()
    bank.nLem, bank.K = images, 4096
    bank.register_buffer("params", torch.tensor([4096, 0.07, 2876934.2, 0.5]))
    bank.register_buffer("memory", torch.nn.functional.normalize(torch.randn(images, 128)))
    state = {f"module.{k}": v for k, v in network.state_dict().items()}
    content = {"epoch": 200, "arch": "resnet50", "state_dict": state, "lemniscate": bank, "best_prec1": 0.468,
               "optimizer": sgd.state_dict()}
    torch.save(content, folder / "legacy.pth.tar", _use_new_zipfile_serialization=False)
    torch.save(content, folder / "zip.pth.tar")


def load(path):
    """torch.load in a process of its own: seconds and peak kilobytes, those of the imports told apart."""
    import torch

    stand_in()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    torch.load(path, map_location="cpu", weights_only=False)
    seconds = time.perf_counter() - started
    print(json.dumps({"s": seconds, "MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3}))


def child(command):
    started = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return {"s": time.perf_counter() - started, "MB": usage.ru_maxrss / 1e3}, output


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        return load(arguments.load)
    if arguments.write:
        return write(Path(arguments.write), arguments.images)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        # In a process of its own: a child's peak memory counts what its parent held when it was made.
        child([sys.executable, __file__, "--write", folder, "--images", arguments.images])
        for name in ("legacy.pth.tar", "zip.pth.tar"):
            file, results = folder / name, {"torch.load": [], "inspect": [], "import --out": []}
            for _ in range(arguments.rounds):
                results["torch.load"].append(json.loads(child([sys.executable, __file__, "--load", file])[1]))
                results["inspect"].append(child([PROGRAM, "inspect", file])[0])
                out = folder / "out.ckpt"
                results["import --out"].append(child([PROGRAM, "import", file, "--out", out, "--force"])[0])
            print(f"{name}, {file.stat().st_size / 1e6:.0f} MB, medians of {arguments.rounds}")
            for what, rounds in results.items():
                median = {key: statistics.median(r[key] for r in rounds) for key in ("s", "MB")}
                print(f"  {what:14} {median['s']:6.2f} s   peak memory {median['MB']:6.0f} MB")


main()
