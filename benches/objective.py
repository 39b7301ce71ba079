"""The objectives and the neighbour search in PyTorch, on the sizes of benches/objective.rs: the published gather
(index_select + bmm), mm + cross_entropy, and mm + topk. Prints one JSON line each, medians.

    python benches/objective.py [FILTER]        (written for torch 2.11)
"""

import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

D = 128
T = 0.07


def median_ms(call):
    call()
    begin, times = time.perf_counter(), []
    while len(times) < 3 or (time.perf_counter() - begin < 1.0 and len(times) < 101):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def report(case, n, b, k, ms):
    print(json.dumps({"case": case, "n": n, "b": b, "k": k, "ms": round(ms, 2), "by": f"torch {torch.__version__}"}), flush=True)


def gathered(features, bank, indices, k):
    """Similarities [B, K+1] of each feature with its positive and K drawn rows."""
    b, n = len(features), len(bank)
    idx = torch.randint(0, n, (b, k + 1))
    idx[:, 0] = indices
    rows = torch.index_select(bank, 0, idx.view(-1)).view(b, k + 1, D)
    return torch.bmm(rows, features.unsqueeze(2)).squeeze(2) / T


def nce(features, bank, indices, k):
    c, eps = k / len(bank), 1e-7
    p = gathered(features, bank, indices, k).exp() / 1e5
    positive = (p[:, 0] / (p[:, 0] + c + eps)).log()
    negative = (c / (p[:, 1:] + c + eps)).log()
    return -(positive.sum() + negative.sum()) / len(features)


def sampled(features, bank, indices, k):
    return F.cross_entropy(gathered(features, bank, indices, k), torch.zeros(len(features), dtype=torch.long))


def full(features, bank, indices, _):
    return F.cross_entropy(features @ bank.t() / T, indices)


def main():
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for n, b in [(50_000, 128), (1_280_000, 256)]:
        bank = (torch.rand(n, D) * 2 - 1) / (D / 3) ** 0.5
        features = F.normalize(torch.randn(b, D)).requires_grad_()
        indices = torch.arange(b) * 97
        cases = [(loss, k) for k in (4096, 65_536) for loss in (nce, sampled)] + [(full, 0)]
        for loss, k in cases:
            if wanted not in loss.__name__:
                continue
            if b * k * D * 4 * 3 > 15e9:  # The gathered rows, three times over, would not fit.
                print(f"skipped {loss.__name__} n={n} b={b} k={k}: needs more memory than is here", file=sys.stderr)
                continue

            def step():
                features.grad = None
                loss(features, bank, indices, k).backward()

            report(loss.__name__, n, b, k, median_ms(step))
        if wanted in "knn":
            for q in [1, 10_000 if n == 50_000 else b]:
                queries = torch.randn(q, D)

                def search():
                    for block in queries.split(1000):
                        torch.topk(block @ bank.t(), 200)

                report("knn", n, q, 200, median_ms(search))


if __name__ == "__main__":
    main()
