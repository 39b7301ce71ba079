#!/usr/bin/env python3
"""Where the time of the network's share of a training step goes, operation by operation.

    benches/profile_step.py                         CIFAR ResNet-18, width 64, batch 128, fp32, channels-last
    benches/profile_step.py --bf16 --size 224 --batch 32

Runs forward and backward of the network that lemniscate trains through torch.profiler of the same libtorch, and adds up
each operation's own time. Layout and order of operations are those of src/model/resnet.rs where libtorch computes all of it, as in
bf16: channels-last maps, ReLU and the residual sum in place. (In fp32 on a CPU src/model/convolution/ and norm/ replace most of it.) --plain leaves the profiler out, so that what it costs can be seen. Prints a table and one JSON object.

"fused_ms" is the least that BatchNorm, ReLU and residual sums could take, forward and backward, in single passes at this
machine's measured memory bandwidth: 10 readings or writings of each normalised map, and 2 more where a residual is added.
"""
import argparse
import json
import statistics
import time

import torch
import torch.nn as nn
import torchvision
from torch.profiler import ProfilerActivity, profile

parser = argparse.ArgumentParser()
parser.add_argument("--arch", default="resnet18", choices=["resnet18", "resnet34", "resnet50"])
parser.add_argument("--size", type=int, default=32)
parser.add_argument("--batch", type=int, default=128)
parser.add_argument("--steps", type=int, default=3)
parser.add_argument("--threads", type=int, default=0, help="0 for as many as torch takes")
parser.add_argument("--bf16", action="store_true", help="convolutions in bf16 with fp32 masters")
parser.add_argument("--nchw", action="store_true", help="PyTorch's own layout instead of channels-last")
parser.add_argument("--plain", action="store_true", help="time whole passes without the profiler")
args = parser.parse_args()
torch.manual_seed(0)
if args.threads:
    torch.set_num_threads(args.threads)

net = getattr(torchvision.models, args.arch)(num_classes=128)
if args.size <= 64:
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
layout = torch.contiguous_format if args.nchw else torch.channels_last
net = net.to(memory_format=layout)
images = torch.randn(args.batch, 3, args.size, args.size).contiguous(memory_format=layout)

# What belongs together; the first pattern that an operation's name contains decides.
GROUPS = [
    ("convolutions, backward", ["convolution_backward"]),
    ("convolutions, forward", ["mkldnn_convolution", "thnn_conv2d", "slow_conv"]),
    ("BatchNorm, backward", ["batch_norm_backward"]),
    ("BatchNorm, forward", ["batch_norm"]),
    ("ReLU, backward", ["threshold_backward"]),
    ("ReLU, forward", ["relu", "clamp_min"]),
    ("linear layer", ["addmm", "aten::mm", "linear"]),
    ("pooling", ["pool", "mean"]),
    ("additions", ["aten::add", "aten::sum"]),
    ("casts and copies", ["copy_", "_to_copy", "aten::to"]),
    ("allocation", ["empty", "zeros", "zero_", "fill_", "resize_"]),
]


def group(name):
    return next((title for title, patterns in GROUPS if any(p in name for p in patterns)), "everything else")


def step():
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
        v = net(images)
    v = v.float()
    v = v / v.square().sum(1, keepdim=True).sqrt()
    forward = time.perf_counter()
    net.zero_grad(set_to_none=True)
    (v * gradient).sum().backward()
    return forward


def bandwidth():
    """Bytes a second of the fastest of several additions that no cache holds: two readings, one writing."""
    a, b = torch.ones(2, 64 << 20)
    fastest = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        torch.add(a, b, out=a)
        fastest = min(fastest, time.perf_counter() - started)
    return 3 * a.nbytes / fastest


gradient = torch.randn(args.batch, 128) / args.batch
maps = {"normalised": 0, "summed": 0}


def count(what):
    def hook(module, inputs, output):
        maps[what] += output.nbytes
    return hook


hooks = [m.register_forward_hook(count("normalised")) for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
stages = (net.layer1, net.layer2, net.layer3, net.layer4)
hooks += [block.register_forward_hook(count("summed")) for stage in stages for block in stage]
step()
for hook in hooks:
    hook.remove()
speed = bandwidth()
fused = 1e3 * (10 * maps["normalised"] + 2 * maps["summed"]) / speed
times = []


def timed():
    started = time.perf_counter()
    forward = step()
    times.append((forward - started, time.perf_counter() - forward))


if args.plain:
    for _ in range(args.steps):
        timed()
    groups = {}
else:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(args.steps):
            timed()
    groups = {}
    for event in recorded.key_averages():
        title = group(event.key)
        groups[title] = groups.get(title, 0.0) + event.self_cpu_time_total / 1e3 / args.steps
forward, backward = (1e3 * statistics.median(column) for column in zip(*times))
total = sum(groups.values())
for title, ms in sorted(groups.items(), key=lambda item: -item[1]):
    print(f"{title:<26}{ms:10.1f} ms {100 * ms / total:6.1f} %")
print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "forward_ms": forward,
                  "backward_ms": backward, "normalised_mb": maps["normalised"] / 1e6, "gb_per_s": speed / 1e9, "fused_ms": fused,
                  **{title: round(ms, 2) for title, ms in groups.items()}}))
