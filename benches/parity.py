#!/usr/bin/env python3
"""Repeats in PyTorch the run that `cargo run --release --example trace` recorded, and states the differences.

    benches/parity.py TRACE.safetensors [STEPS]      (needs torch and safetensors)

Same weights, bank, inputs and negatives, fp32: what is left is rounding, which training amplifies. How much it does is
measured beside it: PyTorch against PyTorch, from weights that are off in their last bits.
"""
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import safe_open

TEMPERATURE, BANK_MOMENTUM, LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.5, 0.03, 0.9, 5e-4
PERTURBATION = 1e-7


class Block(nn.Module):
    def __init__(self, inner, outer, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.shortcut = nn.Sequential()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class CifarResNet18(nn.Module):
    def __init__(self, dim=128):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        for stage, (inner, outer) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)]):
            stride = 1 if stage == 0 else 2
            setattr(self, f"layer{stage + 1}", nn.Sequential(Block(inner, outer, stride), Block(outer, outer, 1)))
        self.linear = nn.Linear(512, dim)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        v = self.linear(x.mean((2, 3)))
        return v / v.square().sum(1, keepdim=True).sqrt()


class Run:
    """The recorded run in PyTorch, from weights that are off by a relative `perturbation`."""

    def __init__(self, trace, perturbation):
        self.net = CifarResNet18()
        state = {name[len("encoder."):]: trace.get_tensor(name) for name in trace.keys() if name.startswith("encoder.")}
        missing, unexpected = self.net.load_state_dict(state, strict=False)
        assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (missing, unexpected)
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter *= 1 + perturbation * torch.randn_like(parameter)
        self.optimizer = torch.optim.SGD(self.net.parameters(), LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.bank, self.z = trace.get_tensor("bank").clone(), None

    def step(self, images, index, negatives):
        bank, k = self.bank, negatives.shape[1]
        v = self.net(images)
        if k == 0:
            loss = F.cross_entropy(v @ bank.t() / TEMPERATURE, index)
        else:
            draws = torch.cat([index[:, None], negatives], 1)
            scores = torch.einsum("bkd,bd->bk", bank[draws], v).div(TEMPERATURE).exp()
            self.z = scores.mean().item() * len(bank) if self.z is None else self.z
            p, c = scores / self.z, k / len(bank)
            loss = -(torch.log(p[:, 0] / (p[:, 0] + c + 1e-7)).sum()
                     + torch.log(c / (p[:, 1:] + c + 1e-7)).sum()) / len(index)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            row = bank[index] * BANK_MOMENTUM + v.detach() * (1 - BANK_MOMENTUM)
            bank[index] = row / row.square().sum(1, keepdim=True).sqrt()
        return loss.item()


torch.manual_seed(0)
with safe_open(sys.argv[1], framework="pt") as trace:
    theirs = trace.get_tensor("losses").tolist()
    steps = min(int(sys.argv[2]) if len(sys.argv) > 2 else len(theirs), len(theirs))
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)
    std = torch.tensor([0.2023, 0.1994, 0.2010]).view(1, 3, 1, 1)
    exact, perturbed = Run(trace, 0.0), Run(trace, PERTURBATION)
    ours, own = 0.0, 0.0
    for step in range(steps):
        pixels = trace.get_tensor(f"pixels.{step}").permute(0, 3, 1, 2).contiguous()
        batch = ((pixels.float() / 255 - mean) / std, trace.get_tensor(f"indices.{step}").long(),
                 trace.get_tensor(f"negatives.{step}").long())
        loss, nearby = exact.step(*batch), perturbed.step(*batch)
        ours, own = max(ours, abs(loss - theirs[step])), max(own, abs(loss - nearby))
        if step < 10 or step % 10 == 9:
            print(f"step {step:3d}  PyTorch {loss:.5f}  lemniscate {theirs[step]:.5f}  largest difference so far {ours:.1e}"
                  f"  (PyTorch from weights off by {PERTURBATION:.0e}: {own:.1e})", flush=True)
