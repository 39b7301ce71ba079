"""The PyTorch side of benches/side_by_side.py: instance discrimination as a PyTorch user would write it.

Trains a ResNet for a few steps on a folder of CIFAR binary files, or at 224 px on a folder of photos, and prints one JSON object: images per
second end to end and the median milliseconds of each part of a step. --mode classic is fp32, NCHW; --mode last is fp32,
channels-last; --mode modern is bfloat16 autocast, channels-last. All load with DataLoader workers and PIL transforms;
--compile compiles the network first (which needs a C++ compiler).
"""
import argparse
import glob
import json
import os
import statistics
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
import torchvision.transforms as T
from PIL import Image

parser = argparse.ArgumentParser()
parser.add_argument("data", help="folder with data_batch_*.bin, or of photos at any depth")
parser.add_argument("--arch", choices=["resnet18", "resnet50"], default="resnet18")
parser.add_argument("--mode", choices=["classic", "last", "modern"], default="modern")
parser.add_argument("--compile", action="store_true")
parser.add_argument("--n-negatives", type=int, default=4096)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--workers", type=int, default=2)
parser.add_argument("--warmup", type=int, default=3)
parser.add_argument("--steps", type=int, default=10)
args = parser.parse_args()
torch.manual_seed(0)
DIM, TEMPERATURE, BANK_MOMENTUM = 128, 0.1, 0.5


class Cifar(torch.utils.data.Dataset):
    def __init__(self, folder, transform):
        files = sorted(glob.glob(os.path.join(folder, "data_batch_*.bin")))
        records = np.concatenate([np.fromfile(f, np.uint8).reshape(-1, 3073) for f in files])
        self.pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        self.transform = transform

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.pixels[i])), i


class Photos(torch.utils.data.Dataset):
    def __init__(self, folder, transform):
        endings = (".jpg", ".jpeg", ".png")
        self.files = sorted(os.path.join(root, name) for root, _, names in os.walk(folder) for name in names
                            if name.lower().endswith(endings))
        self.transform = transform

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        with open(self.files[i], "rb") as file:
            return self.transform(Image.open(file).convert("RGB")), i


small = bool(glob.glob(os.path.join(args.data, "data_batch_*.bin")))
jitter, gray = T.ColorJitter(0.4, 0.4, 0.4, 0.4), T.RandomGrayscale(0.2)
if small:
    data = Cifar(args.data, T.Compose([
        T.RandomResizedCrop(32, scale=(0.2, 1.0)), jitter, gray, T.ToTensor(),
        T.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))]))
else:
    data = Photos(args.data, T.Compose([
        T.RandomResizedCrop(224, scale=(0.2, 1.0)), gray, jitter, T.RandomHorizontalFlip(), T.ToTensor(),
        T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]))
loader = torch.utils.data.DataLoader(data, args.batch_size, shuffle=True, num_workers=args.workers, drop_last=True,
                                     persistent_workers=args.workers > 0)
net = getattr(torchvision.models, args.arch)(num_classes=DIM)
if small:
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
modern, last = args.mode == "modern", args.mode != "classic"
if last:
    net = net.to(memory_format=torch.channels_last)
forward = torch.compile(net) if args.compile else net
optimizer = torch.optim.SGD(net.parameters(), 0.03, momentum=0.9, weight_decay=5e-4)
n = len(data)
bank = F.normalize(torch.randn(n, DIM))
normalizer = None


def embed(images):
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=modern):
        out = forward(images)
    return F.normalize(out.float())


def objective(v, index):
    global normalizer
    if args.n_negatives == 0:
        return F.cross_entropy(v @ bank.t() / TEMPERATURE, index)
    draws = torch.randint(n, (len(index), args.n_negatives + 1))
    draws[:, 0] = index
    rows = bank.index_select(0, draws.view(-1)).view(len(index), -1, DIM)
    scores = torch.bmm(rows, v.unsqueeze(2)).squeeze(2).div(TEMPERATURE).exp()
    if normalizer is None:
        normalizer = scores.mean().item() * n
    p, c = scores / normalizer, args.n_negatives / n
    return -(torch.log(p[:, 0] / (p[:, 0] + c + 1e-7)).sum() + torch.log(c / (p[:, 1:] + c + 1e-7)).sum()) / len(index)


def batches():
    while True:
        yield from loader


parts = {name: [] for name in ("data_ms", "forward_ms", "objective_ms", "backward_ms", "update_ms")}
source = batches()
started = None
for step in range(args.warmup + args.steps):
    if step == args.warmup:
        started = time.perf_counter()
    marks = [time.perf_counter()]
    images, index = next(source)
    marks.append(time.perf_counter())
    v = embed(images)
    marks.append(time.perf_counter())
    loss = objective(v, index)
    marks.append(time.perf_counter())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    with torch.no_grad():
        bank[index] = F.normalize(bank[index] * BANK_MOMENTUM + v.detach() * (1 - BANK_MOMENTUM))
    marks.append(time.perf_counter())
    optimizer.step()
    loss.item()
    marks.append(time.perf_counter())
    if step >= args.warmup:
        for name, begin, end in zip(parts, marks, marks[1:]):
            parts[name].append(1e3 * (end - begin))
seconds = time.perf_counter() - started
print(json.dumps({"images_per_s": args.steps * args.batch_size / seconds,
                  **{name: statistics.median(values) for name, values in parts.items()}}))
