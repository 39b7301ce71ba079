#!/usr/bin/env python3
"""Makes go wrong whatever can go wrong around a run, again and again, and checks that nothing is lost:  make soak

    scripts/soak.py [--minutes 60] [--seed 0] [--only NAME ...] [--program target/release/lemniscate] [--out FOLDER]

Each part has its share of the time and repeats one kind of fault with drawn places. After every fault the run is resumed,
and must end with the tensors and the losses of a run that met none, bit for bit. What is drawn follows from the seed:
faults at a system call happen at the same place again, kills after a drawn time only about there. Ends with a table, and
with code 1 if a promise was broken; then the folder of the run in question is kept. docs/RELIABILITY.md has the promises.
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib

import soak_memory

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = (
    "--arch resnet18 --width 2 --embed-dim 8 --image-size 16 -b 8 --nce-k 8 -j 1 --threads 1 --precision fp32 "
    "--monitor nn --save-every 0.00001"
).split()
STEPS = 30
KINDS = {"ENOSPC": "No space left", "EDQUOT": "uota", "EIO": "nput/output error", "EROFS": "Read-only file system"}


class Broken(Exception):
    """A promise that was not kept."""


def png(path, number):
    """A small picture, different for every number."""
    shade = lambda value: (value * 11 + number * 23) % 256
    rows = b"".join(
        b"\0" + bytes(c for x in range(20) for c in (shade(x), shade(y), shade(x + y))) for y in range(18)
    )
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    header = struct.pack(">IIBBBBB", 20, 18, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def tensors(checkpoint):
    """Name, type, shape and bytes of everything in a safetensors file."""
    data = checkpoint.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__")
    return {n: (i["dtype"], i["shape"], body[slice(*i["data_offsets"])]) for n, i in header.items()}


def losses(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["loss"]) for r in records if r["kind"] == "step"]


def steps_done(run):
    try:
        return (run / "metrics.jsonl").read_text().count('"kind":"step"')
    except OSError:
        return 0


class Soak:
    def __init__(self, program, out, seed):
        self.program, self.out, self.random = program, out, random.Random(seed)
        self.table, self.failures = {}, []
        self.photos = out / "photos"
        self.photos.mkdir(parents=True)
        for number in range(24):
            png(self.photos / f"{number:03}.png", number)
        self.shim = out / "shim.so"
        source = ROOT / "tests/fixtures/faults/shim.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", self.shim, source, "-ldl"], check=True)
        self.whole = self.fresh("whole")
        self.ok(self.run(*self.train(self.whole)))
        self.first = self.fresh("first")
        self.ok(self.run(*self.train(self.first, "--max-steps", "1")))
        self.expected = tensors(self.whole / "last.ckpt")
        self.losses = losses(self.whole)
        assert len(self.losses) == STEPS and len(self.expected) > 100

    # What a part is made of.

    def fresh(self, name):
        run = self.out / name
        shutil.rmtree(run, ignore_errors=True)
        return run

    def copy_of_first(self, name):
        run = self.fresh(name)
        shutil.copytree(self.first, run)
        return run

    def train(self, run, *more):
        # Ten epochs of three steps.
        return ["train", self.photos, "--out", run, "--epochs", "10", *SMALL, *more]

    def resume(self, run, *more):
        return ["train", "--resume", run, *more]

    def command(self, *arguments):
        return [str(self.program), *map(str, arguments)]

    def environment(self, faults):
        env = dict(os.environ, LEMNISCATE_NO_PROGRESS="1")
        return env | {"LD_PRELOAD": str(self.shim)} | faults if faults else env

    def run(self, *arguments, faults=None, prefix=()):
        command = [*prefix, *self.command(*arguments)]
        return subprocess.run(command, env=self.environment(faults), capture_output=True, text=True, timeout=600)

    def start(self, *arguments, faults=None):
        command = self.command(*arguments)
        return subprocess.Popen(command, env=self.environment(faults), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def ok(self, done):
        if done.returncode != 0:
            raise Broken(f"exit code {done.returncode}: {done.stderr.strip()[-500:]}")

    def refused(self, done, *words):
        if done.returncode != 1:
            raise Broken(f"exit code {done.returncode} and not 1: {done.stderr.strip()[-500:]}")
        for word in words:
            if word not in done.stderr:
                raise Broken(f"the message does not say {word!r}: {done.stderr.strip()[-500:]}")

    def finish(self, run):
        """Resumes `run` to its end, which must be that of the run without faults."""
        self.ok(self.run(*self.resume(run)))
        found = tensors(run / "last.ckpt")
        if found != self.expected:
            raise Broken(f"tensors differ: {[n for n in self.expected if found.get(n) != self.expected[n]][:5]}")
        if losses(run) != self.losses:
            raise Broken("the losses have gaps, repetitions or other values")
        left = [path.name for path in run.iterdir() if path.name.endswith(".tmp")]
        if left:
            raise Broken(f"left behind: {left}")

    def wait_for(self, child, ready):
        began = time.monotonic()
        while child.poll() is None and not ready():
            if time.monotonic() - began > 300:
                child.kill()
                raise Broken("the run hangs")
            time.sleep(0.002)

    def ends(self, child, *words):
        """Waits for a run that must stop by itself with an error of these words."""
        try:
            _, said = child.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            child.kill()
            raise Broken("the run does not notice") from None
        self.refused(subprocess.CompletedProcess(child.args, child.returncode, "", said), *words)

    # The parts. Each injects at least one fault a call and gives their number.

    def kill_at_random(self):
        run = self.fresh("killed")
        arguments, kills = self.train(run), 0
        while True:
            before = steps_done(run)
            child = self.start(*arguments)
            # Some progress each time, then any moment: the start, a step, a save, the end of an epoch.
            self.wait_for(child, lambda: steps_done(run) != before or self.random.random() < 0.0005)
            time.sleep(self.random.random() ** 2 * 0.2)
            if child.poll() is not None:
                self.ok(subprocess.CompletedProcess([], child.returncode, "", child.stderr.read()))
                break
            child.kill()
            child.wait()
            child.stderr.close()
            kills += 1
            if any((run / name).is_file() for name in ("last.ckpt", "previous.ckpt")):
                arguments = self.resume(run)
            else:
                run = self.fresh("killed")
                arguments = self.train(run)
        self.finish(run)
        return kills

    def kill_at_a_call(self):
        run = self.copy_of_first("killed-at-call")
        call = self.random.randrange(1, 2500)
        faults = {"FAULT_FOLDER": run.name, "FAULT_KIND": "KILL", "FAULT_CALL": str(call)}
        done = self.run(*self.resume(run), faults=faults)
        if done.returncode != -signal.SIGKILL:
            raise Broken(f"call {call}: not killed but {done.returncode}: {done.stderr[-300:]}")
        self.finish(run)
        return 1

    def failing_calls(self):
        run = self.copy_of_first("failing")
        call, kind = self.random.randrange(1, 2500), self.random.choice(sorted(KINDS))
        faults = {"FAULT_FOLDER": run.name, "FAULT_KIND": kind, "FAULT_CALL": str(call)}
        self.refused(self.run(*self.resume(run), faults=faults), KINDS[kind])
        self.finish(run)
        return 1

    def full_disk(self):
        """A file system that is really full, then read-only; only root can make one."""
        place = self.out / "disk"
        place.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place]
        if subprocess.run(mount, capture_output=True).returncode != 0:
            return None
        try:
            run = place / "run"
            shutil.copytree(self.first, run)
            filler = place / "filler"
            free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
            filler.write_bytes(bytes(max(0, free - self.random.randrange(8_000, 40_000))))
            self.refused(self.run(*self.resume(run)), "No space left")
            filler.unlink()
            child = self.start(*self.resume(run))
            self.wait_for(child, lambda: steps_done(run) > 4)
            remounted = subprocess.run(["mount", "-o", "remount,ro", place], capture_output=True)
            if remounted.returncode == 0:
                self.ends(child, "Read-only file system")
                subprocess.run(["mount", "-o", "remount,rw", place], check=True)
            else:  # The run is just writing; the next round will find another moment.
                child.wait()
            self.finish(run)
            return 2
        finally:
            subprocess.run(["umount", "-l", place], check=True)

    def size_limit(self):
        run = self.copy_of_first("limited")
        limit = f"ulimit -f {self.random.randrange(1, 60)}; exec \"$@\""
        self.refused(self.run(*self.resume(run), prefix=["sh", "-c", limit, "sh"]), "File too large")
        self.finish(run)
        return 1

    def damaged_checkpoint(self):
        run = self.copy_of_first("damaged")
        self.ok(self.run(*self.resume(run, "--max-steps", "5")))
        last = run / "last.ckpt"
        whole = last.read_bytes()
        faults = 0
        for _ in range(5):
            damaged = bytearray(whole)
            at = self.random.randrange(len(whole))
            damaged[at] ^= 1 << self.random.randrange(8)
            cut = whole[: self.random.randrange(len(whole))]
            for content in (bytes(damaged), cut):
                last.unlink()
                last.write_bytes(content)
                refused = self.run("inspect", last)
                self.refused(refused, "last.ckpt")
                faults += 1
        done = self.run(*self.resume(run, "--max-steps", "7"))
        self.ok(done)
        if "previous.ckpt instead" not in done.stderr:
            raise Broken("it does not say that another checkpoint was taken")
        self.finish(run)
        return faults

    def lost_image(self):
        run = self.copy_of_first("lost")
        image = self.photos / f"{self.random.randrange(24):03}.png"
        whole = image.read_bytes()
        child = self.start(*self.resume(run))
        self.wait_for(child, lambda: steps_done(run) > 2)
        image.unlink()
        # Every epoch of three steps reads it once, and batches are read ahead: later it may not be missed any more.
        missed = steps_done(run) > STEPS - 9
        how = self.random.choice(["gone", "cut", "garbage", "pipe"])
        try:
            if how == "cut":
                # Without its last bytes, a checksum, all pixels would still be there.
                image.write_bytes(whole[: self.random.randrange(len(whole) - 16)])
            elif how == "garbage":
                image.write_bytes(self.random.randbytes(len(whole)))
            elif how == "pipe":
                os.mkfifo(image)
            if missed:
                child.communicate()
            else:
                self.ends(child, image.name, "is saved")
        finally:
            child.kill()
            image.unlink(missing_ok=True)
            image.write_bytes(whole)
        self.finish(run)
        return 0 if missed else 1

    def hanging_image(self):
        run = self.copy_of_first("hanging")
        name = f"{self.random.randrange(24):03}.png"
        done = self.run(*self.resume(run, "--read-timeout", "1"), faults={"FAULT_HANG": name})
        self.refused(done, name, "hang")
        self.finish(run)
        return 1

    def vanished_folder(self):
        run = self.copy_of_first("vanishing")
        child = self.start(*self.resume(run))
        self.wait_for(child, lambda: steps_done(run) > 2)
        moved = self.fresh("vanished")
        run.rename(moved)
        self.ends(child, "removed or moved away")
        self.finish(moved)
        return 1

    def second_process(self):
        run = self.copy_of_first("shared")
        child = self.start(*self.resume(run))
        self.wait_for(child, lambda: steps_done(run) > 1)
        second = self.run(*self.resume(run))
        if child.poll() is None and (second.returncode != 2 or f"process {child.pid}" not in second.stderr):
            child.kill()
            raise Broken(f"the second process was let in: {second.stderr[-300:]}")
        child.kill()
        child.wait()
        self.finish(run)
        return 1

    def jumping_clock(self):
        run = self.copy_of_first("clock")
        for path in self.photos.iterdir():
            years = self.random.choice([1, 30, 90, 180]) * 31_557_600
            os.utime(path, (years, years))
        self.ok(self.run(*self.resume(run), faults={"FAULT_CLOCK": "1"}))
        self.finish(run)
        return 1

    def little_memory(self):
        """Under limits too small for it a run is refused, or the estimate was wrong and it ends otherwise."""
        run = self.fresh("little-memory")
        limit = f"ulimit -v {self.random.randrange(900, 1500) * 1024}; exec \"$@\""
        arguments = ["train", "synthetic:500000x16", "--out", run, "--preset", "cifar", "--embed-dim", "4096", "--threads", "1", "-j", "1"]
        done = self.run(*arguments, prefix=["sh", "-c", limit, "sh"])
        if done.returncode != 2 or "--ignore-memory-estimate" not in done.stderr or run.exists():
            raise Broken(f"exit code {done.returncode}: {done.stderr[-300:]}")
        return 1

    def repeat(self, name, seconds, least=1):
        part = getattr(self, name)
        faults, rounds, began = 0, 0, time.monotonic()
        while rounds == 0 or faults < least or time.monotonic() - began < seconds:
            try:
                injected = part()
            except (Broken, subprocess.SubprocessError, OSError) as error:
                self.failures.append(f"{name}, round {rounds + 1}: {error}")
                print(f"BROKEN {self.failures[-1]}", flush=True)
                shutil.copytree(self.out, self.out.parent / f"{self.out.name}-broken-{len(self.failures)}",
                                ignore=shutil.ignore_patterns("disk"), dirs_exist_ok=True)
                injected = 1
                if len(self.failures) >= 10:
                    break
            if injected is None:
                self.table[name] = ("skipped: needs root", 0, 0.0)
                print(f"{name}: skipped, only root can mount a file system", flush=True)
                return
            faults, rounds = faults + injected, rounds + 1
        spent = time.monotonic() - began
        self.table[name] = (faults, rounds, spent)
        print(f"{name}: {faults} faults in {rounds} rounds, {spent:.0f} s", flush=True)


# Name, share of the time, and faults that it makes at least in an hour.
PARTS = [
    ("kill_at_random", 0.24, 100),
    ("kill_at_a_call", 0.14, 20),
    ("failing_calls", 0.12, 20),
    ("full_disk", 0.05, 2),
    ("size_limit", 0.03, 2),
    ("damaged_checkpoint", 0.06, 20),
    ("lost_image", 0.05, 4),
    ("hanging_image", 0.03, 2),
    ("vanished_folder", 0.03, 2),
    ("second_process", 0.03, 2),
    ("jumping_clock", 0.02, 1),
    ("little_memory", 0.02, 1),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=[name for name, _, _ in PARTS] + ["memory"])
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "target/release/lemniscate")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs/soak")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    program = arguments.program.resolve()
    work = out / "faults"
    soak = Soak(program, work, arguments.seed)
    for name, share, least in PARTS:
        if arguments.only is None or name in arguments.only:
            soak.repeat(name, share * arguments.minutes * 60, least * min(1, arguments.minutes / 60))
    memory = []
    if arguments.only is None or "memory" in arguments.only:
        memory = soak_memory.chart(program, out, 0.09 * arguments.minutes * 60)
    lines = ["", f"seed {arguments.seed}, {program.name}", "", "| fault | injected | rounds | seconds |", "|---|---|---|---|"]
    lines += [f"| {n.replace('_', ' ')} | {f} | {r} | {s:.0f} |" for n, (f, r, s) in soak.table.items()]
    lines += ["", *memory, "", f"promises broken: {len(soak.failures)}", *soak.failures]
    print("\n".join(lines))
    (out / "summary.md").write_text("\n".join(lines) + "\n")
    if not soak.failures:
        shutil.rmtree(work)
    sys.exit(1 if soak.failures else 0)


if __name__ == "__main__":
    main()
