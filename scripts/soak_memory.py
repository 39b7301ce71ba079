"""Resident memory over some thousands of steps, sampled and drawn: part of scripts/soak.py."""
import json
import os
import shutil
import subprocess
import time

# Name, settings. The network is small, so that many steps fit into the time; bank, loader and everything else that grows
# with the data have their full size.
RUNS = {
    "cifar": "synthetic:50000x32 --preset cifar --width 4 -b 32 --nce-k 64",
    "imagenet-n": "synthetic:1281167x16 --preset cifar --image-size 16 --width 4 -b 32 --nce-k 64",
}
SETTINGS = "--monitor none --threads 1 -j 1 --precision fp32 --save-every 1 --epochs 1000 --quiet".split()


def resident(pid):
    """Resident memory, and the part of it that is not of files, in MiB."""
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    kib = lambda name: int(fields[name].split()[0])
    return kib("VmRSS") / 1024, kib("RssAnon") / 1024


def record(program, run, settings, seconds):
    """Trains for `seconds`; rows of seconds, steps, resident MiB, anonymous MiB."""
    command = [str(program), "train", *settings.split(), "--out", str(run), *SETTINGS]
    child = subprocess.Popen(command, env=dict(os.environ, LEMNISCATE_NO_PROGRESS="1"))
    rows, began, metrics, position, steps = [], time.monotonic(), run / "metrics.jsonl", 0, 0
    try:
        while child.poll() is None and time.monotonic() - began < seconds:
            time.sleep(min(1, seconds / 200))
            if metrics.exists():
                with open(metrics, "rb") as file:
                    file.seek(position)
                    new = file.read()
                position, steps = position + len(new), steps + new.count(b'"kind":"step"')
            if steps:
                rows.append((time.monotonic() - began, steps, *resident(child.pid)))
    finally:
        child.terminate()
        code = child.wait()
    # Ended by the signal as it should: saved.
    assert code == 130, f"exit code {code}"
    return rows


def svg(rows, title):
    """Resident and anonymous memory over the steps."""
    width, height, left, top = 640, 280, 60, 40
    most_steps, most = rows[-1][1], 1.2 * max(row[2] for row in rows)
    place = lambda steps, mib: f"{left + (width - left - 20) * steps / most_steps:.1f},{top + (height - top - 40) * (1 - mib / most):.1f}"
    line = lambda column, colour: (
        f'<polyline fill="none" stroke="{colour}" points="{" ".join(place(r[1], r[column]) for r in rows)}"/>'
    )
    text = lambda x, y, words, anchor="start": f'<text x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'
    marks = [text(left - 6, top + (height - top - 40) * (1 - i / 4) + 4, f"{most * i / 4:.0f}", "end") for i in range(5)]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        text(left, 20, f"{title}: resident (blue) and anonymous (red) memory, MiB"),
        *marks, line(2, "#1f77b4"), line(3, "#d62728"),
        text(left, height - 12, "0"), text(width - 20, height - 12, f"step {most_steps}", "end"), "</svg>", "",
    ])


def chart(program, out, seconds):
    """Runs all of [RUNS], writes memory-NAME.csv and .svg to `out`; lines for the summary."""
    said = []
    for name, settings in RUNS.items():
        run = out / f"memory-{name}"
        rows = record(program, run, settings, seconds / len(RUNS))
        with open(out / f"memory-{name}.csv", "w") as file:
            file.write("seconds,steps,resident_mib,anonymous_mib\n")
            file.writelines(f"{a:.1f},{b},{c:.1f},{d:.1f}\n" for a, b, c, d in rows)
        (out / f"memory-{name}.svg").write_text(svg(rows, name))
        # The first tenth of the steps warms up caches and the allocator.
        settled = [row for row in rows if row[1] >= rows[-1][1] / 10]
        half = len(settled) // 2
        mean = lambda part: sum(row[3] for row in part) / max(1, len(part))
        said.append(
            f"memory {name}: {rows[-1][1]} steps, resident at most {max(r[2] for r in rows):.0f} MiB; anonymous "
            f"{mean(settled[:half]):.0f} MiB on average in the first half, {mean(settled[half:]):.0f} MiB in the second"
        )
        print(said[-1], flush=True)
        shutil.rmtree(run)
    return said
