#!/usr/bin/env python3
"""Holds `lemniscate linear` and `lemniscate eval` against scikit-learn and NumPy on the same exported features.

    lemniscate embed RUN DATA --layer pooled --split train --out train.parquet      (and --split test)
    lemniscate linear RUN DATA --layer pooled --json > linear.json
    benches/features.py linear train.parquet test.parquet linear.json

    lemniscate embed RUN DATA --split train --out train.parquet                     (and --split test)
    lemniscate eval RUN DATA -k 200 -t 0.1 --json > eval.json
    benches/features.py knn train.parquet test.parquet eval.json

`linear` fits LogisticRegression with the strength of L2 that we chose, on features standardised by StandardScaler, and
expects at most 0.3 points between the two. `knn` repeats the vote in NumPy with our order of equal similarities (the
lower row first) and of equal scores (the lower class first), and expects the same count. Either exits with 1 if not.
Needs numpy, pandas, pyarrow and scikit-learn.
"""
import argparse
import json
import sys
import time

import numpy as np
import pandas


def read(path):
    """Vectors [N, F] and label names [N] of a table that `lemniscate embed` wrote."""
    table = pandas.read_parquet(path)
    return np.stack(table["embedding"].to_numpy()).astype(np.float32), table["label"].to_numpy()


def rows(path, **wanted):
    """The JSON lines of `path` that have these values."""
    lines = [json.loads(line) for line in open(path) if line.startswith("{")]
    return [row for row in lines if all(row.get(key) == value for key, value in wanted.items())]


def linear(train, test, results):
    import sklearn
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    (x, y), (xt, yt) = train, test
    matching = [row for row in rows(results, solver="lbfgs") if row["numbers"] == x.shape[1]]
    if not matching:
        sys.exit(f"no result of the lbfgs solver with {x.shape[1]} numbers in the JSON file")
    ok = True
    for ours in matching:
        l2 = ours["chosen"]
        scaler = StandardScaler().fit(x) if ours["standardised"] else None
        scale = scaler.transform if scaler else lambda features: features
        start = time.perf_counter()
        # Their penalty is (1/2)·|W|² beside C times the summed loss.
        model = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-6, max_iter=5000).fit(scale(x).astype(np.float64), y)
        seconds = time.perf_counter() - start
        theirs = model.score(scale(xt).astype(np.float64), yt)
        difference = 100 * abs(theirs - ours["top1"])
        ok &= difference <= 0.3
        print(f"{ours['layer']}: {len(x)} + {len(xt)} images, {x.shape[1]} numbers, L2 {l2:g}: "
              f"lemniscate {100 * ours['top1']:.2f} ({ours['iterations']} iterations after the sweep), "
              f"scikit-learn {sklearn.__version__} {100 * theirs:.2f} ({model.n_iter_[0]} iterations, {seconds:.1f} s), "
              f"{difference:.2f} points apart")
    return ok


def knn(train, test, results):
    (bank, labels), (queries, truth) = train, test
    names, labels = np.unique(labels, return_inverse=True)
    matching = rows(results, layer="embedding", bank="recomputed")
    ok = bool(matching)
    for ours in matching:
        k, t = min(ours["k"], len(bank)), ours["temperature"]
        right = 0
        for start in range(0, len(queries), 500):
            block = queries[start:start + 500] @ bank.T
            # Stable, so that of equal similarities the lower row comes first.
            order = np.argsort(-block, axis=1, kind="stable")[:, :k]
            weights = np.exp((np.take_along_axis(block, order, 1).astype(np.float64) - 1) / t)
            scores = np.zeros((len(block), len(names)))
            for column in range(k):
                np.add.at(scores, (np.arange(len(block)), labels[order[:, column]]), weights[:, column])
            right += int((names[scores.argmax(1)] == truth[start:start + 500]).sum())
        same = right == round(ours["top1"] * len(queries))
        ok &= same
        print(f"kNN, k = {k}, T = {t:g}: {len(bank)} rows, {len(queries)} queries: lemniscate "
              f"{100 * ours['top1']:.2f}, NumPy {100 * right / len(queries):.2f} ({'the same' if same else 'DIFFERENT'})")
    return ok


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test", choices=["linear", "knn"])
    parser.add_argument("train_table", help="what `embed --split train` wrote, .parquet")
    parser.add_argument("test_table", help="what `embed --split test` wrote, .parquet")
    parser.add_argument("results", help="what `linear --json` or `eval --json` printed")
    args = parser.parse_args()
    compare = linear if args.test == "linear" else knn
    sys.exit(0 if compare(read(args.train_table), read(args.test_table), args.results) else 1)


if __name__ == "__main__":
    main()
