"""The objectives and the neighbour search in PyTorch, on the sizes of benches/objective.rs: the published gather
(index_select + bmm), mm + cross_entropy, and mm + topk, on a bank in fp32 and on one in bf16. Prints one JSON line each,
medians.

Rows in bf16 are multiplied by features rounded to bf16, or turned into fp32 first, which is what lemniscate computes: the
line has the faster of the two.

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


def gathered(features, bank, indices, k, dtype):
    """Similarities [B, K+1] of each feature with its positive and K drawn rows, multiplied in `dtype`."""
    b, n = len(features), len(bank)
    idx = torch.randint(0, n, (b, k + 1))
    idx[:, 0] = indices
    rows = torch.index_select(bank, 0, idx.view(-1)).view(b, k + 1, D).to(dtype)
    return torch.bmm(rows, features.to(dtype).unsqueeze(2)).squeeze(2).float() / T


def nce(features, bank, indices, k, dtype):
    c, eps = k / len(bank), 1e-7
    p = gathered(features, bank, indices, k, dtype).exp() / 1e5
    positive = (p[:, 0] / (p[:, 0] + c + eps)).log()
    negative = (c / (p[:, 1:] + c + eps)).log()
    return -(positive.sum() + negative.sum()) / len(features)


def sampled(features, bank, indices, k, dtype):
    scores = gathered(features, bank, indices, k, dtype)
    return F.cross_entropy(scores, torch.zeros(len(features), dtype=torch.long))


def full(features, bank, indices, _, dtype):
    return F.cross_entropy((features.to(dtype) @ bank.to(dtype).t()).float() / T, indices)


def measure(n, b, stored, wanted):
    """All cases of one bank; those of a bank in bf16 say so in their names."""
    named = (lambda case: case) if stored == torch.float32 else (lambda case: f"{case} bf16")
    if not any(wanted in named(case) for case in ("nce", "sampled", "full", "knn")):
        return
    bank = ((torch.rand(n, D) * 2 - 1) / (D / 3) ** 0.5).to(stored)
    features = F.normalize(torch.randn(b, D)).requires_grad_()
    indices = torch.arange(b) * 97
    multiplied_in = {torch.float32, stored}
    cases = [(loss, k) for k in (4096, 65_536) for loss in (nce, sampled)] + [(full, 0)]
    for loss, k in cases:
        case = named(loss.__name__)
        if wanted not in case:
            continue
        if b * k * D * 4 * 3 > 15e9:  # The gathered rows, three times over, would not fit.
            print(f"skipped {case} n={n} b={b} k={k}: needs more memory than is here", file=sys.stderr)
            continue

        def step(dtype):
            features.grad = None
            loss(features, bank, indices, k, dtype).backward()

        report(case, n, b, k, min(median_ms(lambda: step(dtype)) for dtype in multiplied_in))
    if wanted in named("knn"):
        for q in [1, 10_000 if n == 50_000 else b]:
            queries = torch.randn(q, D)

            def search(dtype):
                for block in queries.split(1000):
                    torch.topk((block.to(dtype) @ bank.to(dtype).t()).float(), 200)

            report(named("knn"), n, q, 200, min(median_ms(lambda: search(dtype)) for dtype in multiplied_in))


def main():
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for n, b in [(50_000, 128), (1_280_000, 256)]:
        for stored in (torch.float32, torch.bfloat16):
            measure(n, b, stored, wanted)


if __name__ == "__main__":
    main()
