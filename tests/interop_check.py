"""Opens with PyTorch what `tests/torch_write.rs` wrote and compares. Needs torch and torchvision.

    LEMNISCATE_TORCH_PYTHON=python3 cargo test --test torch_write

writes the files to a folder and runs `python3 tests/interop_check.py FOLDER`. Passes with torch 2.11.0 and
torchvision 0.26.0. The classes under `lib` stand in for the published program's: its names and attributes, and just enough to use them.
"""
import json
import math
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
import torchvision
from torch import nn


class AliasMethod:
    def __init__(self, frequencies):
        if frequencies.sum() > 1:
            frequencies /= frequencies.sum()
        # Enough for equal frequencies: every draw is kept.
        self.prob = torch.ones(len(frequencies))
        self.alias = torch.zeros(len(frequencies), dtype=torch.long)

    def draw(self, count):
        drawn = torch.randint(len(self.alias), (count,))
        keep = torch.bernoulli(self.prob[drawn]).bool()
        return torch.where(keep, drawn, self.alias[drawn])


class Bank(nn.Module):
    def __init__(self, dim, rows, params):
        super().__init__()
        self.nLem = rows
        self.register_buffer("params", torch.tensor(params))
        bound = 1 / math.sqrt(dim / 3)
        self.register_buffer("memory", torch.empty(rows, dim).uniform_(-bound, bound))


class LinearAverage(Bank):
    def __init__(self, dim, rows, t=0.07, momentum=0.5):
        super().__init__(dim, rows, [t, momentum])

    def forward(self, x):
        return x @ self.memory.t() / self.params[0]


class NCEAverage(Bank):
    def __init__(self, dim, rows, k, t=0.07, momentum=0.5):
        super().__init__(dim, rows, [k, t, -1.0, momentum])
        self.unigrams = torch.ones(rows)
        self.multinomial = AliasMethod(self.unigrams)
        self.K = k

    def forward(self, x):
        indices = self.multinomial.draw(len(x) * (self.K + 1))
        weight = self.memory.index_select(0, indices).view(len(x), self.K + 1, -1)
        return torch.einsum("bkd,bd->bk", weight, x) / self.params[1]


CLASSES = {"NCEAverage": NCEAverage, "LinearAverage": LinearAverage, "alias_multinomial": AliasMethod}


def register_stand_ins():
    sys.modules["lib"] = types.ModuleType("lib")
    for module, cls in CLASSES.items():
        cls.__module__ = f"lib.{module}"
        sys.modules[cls.__module__] = types.ModuleType(cls.__module__)
        setattr(sys.modules[cls.__module__], cls.__name__, cls)


def content(tensor):
    """A tensor's bytes, and what they mean."""
    raw = tensor.contiguous().reshape(-1)
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), bytes(raw.view(torch.uint8).tolist()).hex()]


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and content(a) == content(b)


def check_values(folder):
    expected = dict(json.loads((folder / "values.json").read_text()))
    path = folder / "values.pth"
    assert zipfile.ZipFile(path).testzip() is None, "a checksum is wrong"
    for options in [{}, {"mmap": True}]:
        loaded = torch.load(path, weights_only=True, **options)
        assert type(loaded["tensors"]) is OrderedDict and list(loaded["tensors"]) == list(expected)
        for name, tensor in loaded["tensors"].items():
            assert content(tensor) == expected[name], f"{name}: {content(tensor)} != {expected[name]}"
            assert not tensor.requires_grad and tensor.is_contiguous(), name
            assert tensor.stride() == torch.empty(tensor.shape).stride(), name
            assert tensor.numel() == 0 or options or tensor.data_ptr() % 8 == 0, name
            assert tensor.numel() == 0 or not options or tensor.data_ptr() % 64 == 0, f"{name} is not aligned"
        plain = [None, True, False, 0, 255, 256, 65536, -1, 2**31, -(2**40), 2**63 - 1, -(2**63), 0.1, "caf\u00e9"]
        plain += [(), (1,)]
        assert loaded["plain"] == plain and [type(x) for x in loaded["plain"]] == [type(x) for x in plain]
    return f"{len(expected)} tensors equal bit for bit, weights_only=True, mapped and not"


def check_large(folder):
    path = folder / "large.pth"
    loaded = torch.load(path, weights_only=True, mmap=True)
    large, after = loaded["large"], loaded["after"]
    assert path.stat().st_size > 2**32 < large.numel() and large[-3:].tolist() == [1, 2, 3] and large[:9].sum() == 0
    assert after.tolist() == [0.5, -0.5, 2.0]
    return f"an archive of {path.stat().st_size} bytes, its second tensor beyond 4 GiB"


def use_bank(bank, cls, rows, dim, own):
    assert type(bank) is cls and bank.nLem == rows and bank.training
    assert list(bank.state_dict()) == ["params", "memory"]
    assert set(vars(bank)) == set(vars(cls(dim, rows, *own))), set(vars(bank)) ^ set(vars(cls(dim, rows, *own)))
    bank.load_state_dict(bank.state_dict(), strict=True)
    bank.eval().train()
    bank.double().float()
    return bank(torch.randn(5, dim))


def check_published(folder):
    path = folder / "imagenet.pth"
    loaded = torch.load(path, weights_only=False)
    assert list(loaded) == ["epoch", "arch", "state_dict", "lemniscate", "best_prec1", "optimizer"]
    assert (loaded["epoch"], loaded["arch"], loaded["best_prec1"]) == (12, "resnet18", 0.375)
    bank = loaded["lemniscate"]
    expected = json.loads((folder / "bank.json").read_text())
    assert content(bank.memory) == expected, "memory"
    rows, dim = bank.memory.shape
    assert same(bank.params, torch.tensor([4096, 0.07, -1, 0.5])) and bank.K == 4096
    fresh = NCEAverage(dim, rows, 4096)
    for a, b in [(bank.unigrams, fresh.unigrams), (bank.multinomial.prob, fresh.multinomial.prob)]:
        assert same(a, b), (a, b)
    assert same(bank.multinomial.alias, fresh.multinomial.alias)
    assert set(vars(bank.multinomial)) == set(vars(fresh.multinomial))
    drawn = bank.multinomial.draw(1000)
    assert drawn.min() >= 0 and drawn.max() < rows
    assert same(bank.memory.index_select(0, drawn), bank.memory[drawn])
    assert use_bank(bank, NCEAverage, rows, dim, [4096]).shape == (5, 4097)
    with torch.serialization.safe_globals([NCEAverage, AliasMethod]):
        assert same(torch.load(path, weights_only=True)["lemniscate"].memory, bank.memory)

    # The network and its optimiser go on where they were.
    net = nn.DataParallel(torchvision.models.resnet18())
    net.load_state_dict(loaded["state_dict"], strict=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=1)
    optimizer.load_state_dict(loaded["optimizer"])
    group = optimizer.param_groups[0]
    found = [group[key] for key in ("lr", "momentum", "dampening", "weight_decay", "nesterov")]
    assert found == [0.03, 0.9, 0, 1e-4, False], found
    parameters = list(net.parameters())
    assert len(optimizer.state) == len(parameters)
    for place, parameter in enumerate(parameters):
        buffer = optimizer.state[parameter]["momentum_buffer"]
        assert buffer.shape == parameter.shape and bool((buffer == place).all()), place
    before, velocity = parameters[3].detach().clone(), torch.full_like(parameters[3], 3)
    net.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    velocity = 0.9 * velocity + parameters[3].grad + 1e-4 * before
    optimizer.step()
    assert torch.allclose(parameters[3].detach(), before - 0.03 * velocity, rtol=1e-5, atol=1e-6)

    cifar = torch.load(folder / "cifar.pth", weights_only=False)
    assert list(cifar) == ["net", "lemniscate", "acc", "epoch"] and (cifar["acc"], cifar["epoch"]) == (0.8, 11)
    linear = cifar["lemniscate"]
    assert same(linear.params, torch.tensor([0.1, 0.5])) and content(linear.memory) == expected
    assert use_bank(linear, LinearAverage, rows, dim, []).shape == (5, rows)
    assert list(cifar["net"]) == [name.removeprefix("module.") for name in loaded["state_dict"]]
    return f"both layouts, {len(parameters)} momentum buffers in order"


def check_network(folder):
    net = torchvision.models.resnet18()
    net.load_state_dict(torch.load(folder / "resnet18.pth", weights_only=True), strict=True)
    run = torch.load(folder / "forward.pth", weights_only=True)
    with torch.no_grad():
        output = net.eval()(run["input"])
    difference = (nn.functional.normalize(output) - run["features"]).abs().max().item()
    assert difference < 1e-5, difference
    return f"torchvision's resnet18 takes the state dict; its unit output differs by {difference:.1e} at most"


if __name__ == "__main__":
    torch.manual_seed(0)
    register_stand_ins()
    for check in [check_values, check_large, check_published, check_network]:
        print(f"{check.__name__}: {check(Path(sys.argv[1]))}", flush=True)
