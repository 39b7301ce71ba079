#!/usr/bin/env python3
"""What `cargo bench --bench gpu` times, in plain PyTorch on the same device: one JSON line each, medians.

    benches/gpu_peer.py DEVICE N B QUERIES
"""
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

DIM, NEIGHBORS, T = 128, 200, 0.07


def main():
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    n, batch, queries = (int(sys.argv[i]) if len(sys.argv) > i else d for i, d in ((2, 1_281_167), (3, 256), (4, 50_000)))
    torch.manual_seed(0)
    bank = F.normalize(torch.randn(n, DIM, device=device))
    features = F.normalize(torch.randn(batch, DIM, device=device)).requires_grad_()
    own = torch.arange(batch, device=device) * 97 % n

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    def report(case, b, k, call, runs=21):
        try:
            call()
            wait()
            times = []
            for _ in range(runs):
                start = time.perf_counter()
                call()
                wait()
                times.append((time.perf_counter() - start) * 1e3)
            ms = statistics.median(times)
        except torch.OutOfMemoryError:
            ms = None
        print(json.dumps({"case": case, "n": n, "b": b, "k": k, "ms": ms, "by": "PyTorch"}), flush=True)

    def scores(negatives):
        rows = bank.index_select(0, negatives.view(-1)).view(batch, -1, DIM)
        return torch.bmm(rows, features.unsqueeze(2)).squeeze(2) / T

    def drawn(k):
        negatives = torch.randint(n, (batch, k + 1), device=device)
        negatives[:, 0] = own
        return negatives

    def nce(negatives, k):
        p, c = scores(negatives).exp() / (2.2 * n), k / n
        loss = -(torch.log(p[:, 0] / (p[:, 0] + c + 1e-7)).sum() + torch.log(c / (p[:, 1:] + c + 1e-7)).sum()) / batch
        torch.autograd.grad(loss, features)

    def sampled(negatives):
        torch.autograd.grad(F.cross_entropy(scores(negatives), torch.zeros_like(own)), features)

    def full():
        torch.autograd.grad(F.cross_entropy(features @ bank.t() / T, own), features)

    def update():
        with torch.no_grad():
            bank[own] = F.normalize(bank[own] * 0.5 + features.detach() * 0.5)

    def knn():
        asked = F.normalize(torch.randn(queries, DIM, device=device))
        rows = max(1, min(queries, (1 << 30) // n))
        return [(part @ bank.t()).topk(min(NEIGHBORS, n), 1) for part in asked.split(rows)]

    for k in (4096, 65_536):
        try:
            given = drawn(k)
        except torch.OutOfMemoryError:
            continue
        report("nce", batch, k, lambda: nce(given, k))
        report("nce with drawing", batch, k, lambda: nce(drawn(k), k))
        report("sampled", batch, k, lambda: sampled(given))
    report("full", batch, 0, full)
    report("update", batch, 0, update)
    with torch.no_grad():
        report("knn", queries, NEIGHBORS, knn, 3)


if __name__ == "__main__":
    main()
