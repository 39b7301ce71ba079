#!/usr/bin/env python3
"""Puts libtorch 2.11 where cargo finds it: downloads, verifies, unpacks, and writes .cargo/config.toml.

    scripts/libtorch.py            the CPU part (500 MB on disk), into a per-user cache
    scripts/libtorch.py --cuda     the whole CUDA wheel with the libraries it needs (about 5 GB)
    LIBTORCH=/dir scripts/libtorch.py   use a libtorch that is already there; nothing is downloaded
    LEMNISCATE_LIBTORCH_CUDA=/dir scripts/libtorch.py --cuda
                                   only compiles what CUDA graphs need, for the libtorch that is there

With --cuda the C++ compiler ($CXX or c++) is asked for one small library, for CUDA graphs. Without it training does without.

Safe to interrupt (nothing counts until it is renamed into place) and to run twice at once (a lock).
Needs only Python 3.8 with pip, which does the downloading. The wheels are checked against the sha256
sums below before a byte of them is used.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

VERSION = "2.11.0"
REPOSITORY = Path(__file__).resolve().parent.parent
# What libtorch has and the tch crate does not; src/model/cuda/graph.rs looks for the library of this source's checksum.
GRAPHS = REPOSITORY / "src/model/cuda/graph.cpp"

# (requirement, pip platform tag, sha256). One CPython version is named for every host, so
# that the same file is fetched everywhere; libtorch itself does not depend on it.
WHEELS = {
    ("Linux", "x86_64"): [
        ("torch==2.11.0", "manylinux_2_28_x86_64",
         "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a"),
        ("nvidia-cuda-runtime==13.0.96", "manylinux2014_x86_64",
         "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
        ("nvidia-cuda-cupti==13.0.85", "manylinux_2_25_x86_64",
         "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"),
    ],
    ("Linux", "aarch64"): [
        ("torch==2.11.0", "manylinux_2_28_aarch64",
         "d91aac77f24082809d2c5a93f52a5f085032740a1ebc9252a7b052ef5a4fddc6"),
        ("nvidia-cuda-runtime==13.0.96", "manylinux2014_aarch64",
         "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55"),
        ("nvidia-cuda-cupti==13.0.85", "manylinux_2_25_aarch64",
         "796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151"),
    ],
    ("Darwin", "arm64"): [
        ("torch==2.11.0", "macosx_11_0_arm64",
         "7b6a60d48062809f58595509c524b88e6ddec3ebe25833d6462eeab81e5f2ce4"),
    ],
}

# What a CPU build links and includes. Everything else in the wheels (Python files, CUDA kernels) stays out.
LIBRARIES = re.compile(
    r"(?:^torch/lib/|^nvidia/.*/lib/|^torch/\.dylibs/)"
    r"(libtorch_cpu|libtorch|libc10|libgomp[^/]*|libomp|libshm|libcudart|libcupti|libopenblas[^/]*|libarm_compute[^/]*|libgfortran[^/]*)"
    r"\.(so|dylib)(\.\d+)*$")
HEADERS = re.compile(r"^torch/include/")


def say(message):
    print(f"libtorch: {message}", flush=True)


def fail(message, hint=None):
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.exit(1)


def cache_root():
    if os.environ.get("LEMNISCATE_CACHE"):
        return Path(os.environ["LEMNISCATE_CACHE"]).expanduser().resolve()
    if platform.system() == "Darwin":
        return Path.home() / "Library/Caches/lemniscate"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lemniscate"


@contextlib.contextmanager
def only_one(lock_path):
    """Holds an advisory lock that the system drops when the process dies, however it dies."""
    with open(lock_path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another run is setting libtorch up; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def version_of(libtorch):
    """As its own header says."""
    header = libtorch / "include/torch/headeronly/version.h"
    text = header.read_text(errors="replace") if header.is_file() else ""
    found = [re.search(rf"#define TORCH_VERSION_{part} (\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(m.group(1) for m in found if m) or "an unknown version"


def check(libtorch):
    """The reason why `libtorch` cannot be used, or None."""
    suffix = "dylib" if platform.system() == "Darwin" else "so"
    version_header = "include/torch/headeronly/version.h"
    for needed in (f"lib/libtorch_cpu.{suffix}", f"lib/libc10.{suffix}", version_header):
        if not (libtorch / needed).is_file():
            return f"{libtorch / needed} is missing"
    version = version_of(libtorch)
    if version.rsplit(".", 1)[0] != "2.11":
        return f"{libtorch} holds libtorch {version}, expected 2.11"
    listing = libtorch / "unpacked.json"
    if listing.is_file():
        for name, size in json.loads(listing.read_text()).items():
            path = libtorch / name
            if not path.is_file() or path.stat().st_size != size:
                return f"{path} is not as it was unpacked"
    return None


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    if subprocess.run(command).returncode != 0:
        fail(f"pip failed: {' '.join(command)}", "check the network, then run the same command again; nothing was changed")


def download(requirement, tag, expected, into):
    """One wheel, checked against its sha256."""
    into.mkdir()
    say(f"downloading {requirement} for {tag}")
    pip("download", "--quiet", "--no-deps", "--only-binary=:all:", "--implementation", "cp",
        "--python-version", "3.11", "--platform", tag, "--dest", str(into), requirement)
    (wheel,) = into.glob("*.whl")
    found = sha256(wheel)
    if found != expected:
        fail(f"{wheel.name}: sha256 is {found}, expected {expected}", "the download was altered on its way, or the file was replaced at its source")
    return wheel


def unpack_cpu(wheels, target):
    listing = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                library = LIBRARIES.search(member.filename)
                if library:
                    name = "lib/" + member.filename.rsplit("/", 1)[1]
                elif HEADERS.match(member.filename) and not member.is_dir():
                    name = member.filename[len("torch/"):]
                else:
                    continue
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(path, "wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
                listing[name] = member.file_size
    (target / "unpacked.json").write_text(json.dumps(listing, indent=0))


def install_cuda(target):
    """The whole wheel and what it depends on, as pip lays it out: the libraries find each other by their rpath."""
    say("installing the CUDA wheel and its libraries (several GB)")
    # pip picks a wheel for the running Python; the version is fixed here, the sums are the index's own.
    pip("install", "--quiet", "--no-compile", "--target", str(target), f"torch=={VERSION}")


def compile_graphs(libtorch, root):
    """The library for CUDA graphs, against the headers of `libtorch`, into the cache at `root`. A program does without where it is
    missing, so nothing here stops the set-up."""
    folder = root / f"libtorch-{VERSION}-shim"
    library = folder / f"liblemniscate_graph-{zlib.crc32(GRAPHS.read_bytes()):08x}.so"
    if library.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="partial.") as work:
        made = Path(work) / library.name
        # Its functions of libtorch and CUDA are found when it is loaded, in the libraries that are there by then.
        command = [*shlex.split(os.environ.get("CXX") or "c++"), "-std=c++17", "-O2", "-shared", "-fPIC",
                   "-D_GLIBCXX_USE_CXX11_ABI=1", "-I", str(GRAPHS.parent / "headers"),
                   "-isystem", str(libtorch / "include"), str(GRAPHS), "-o", str(made)]
        say("compiling what CUDA graphs need")
        try:
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
            said = done.stderr.strip() if done.returncode != 0 else None
        except OSError as error:
            said = str(error)
        if said is not None:
            say(f"training will do without CUDA graphs: {' '.join(command)}\n{said}")
            return
        os.replace(made, library)
    say(f"{library} is ready")


def write_cargo_config(libtorch):
    """`.cargo/config.toml` tells torch-sys where libtorch is and lets doctests find it at run time."""
    path = REPOSITORY / ".cargo/config.toml"
    library_dir = json.dumps(f"-Clink-arg=-Wl,-rpath,{libtorch / 'lib'}")
    text = (
        "# Written by scripts/libtorch.py; not tracked. An environment variable LIBTORCH wins over this.\n"
        f"[env]\nLIBTORCH = {json.dumps(str(libtorch))}\n\n"
        f"[build]\nrustdocflags = [{library_dir}]\n")
    if path.is_file() and path.read_text() == text:
        return
    path.parent.mkdir(exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix="config.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(temporary, path)
    say(f"wrote {path.relative_to(REPOSITORY)}; plain cargo commands work now")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cuda", action="store_true", help="the whole CUDA wheel instead of its CPU part (Linux only)")
    arguments = parser.parse_args()

    named = os.environ.get("LEMNISCATE_LIBTORCH_CUDA")
    if arguments.cuda and named:
        libtorch = Path(named).expanduser().resolve()
        # The program takes the folder of the libraries too.
        libtorch = libtorch if (libtorch / "include").is_dir() else libtorch.parent
        if version_of(libtorch) != VERSION:
            fail(f"LEMNISCATE_LIBTORCH_CUDA: {libtorch} holds libtorch {version_of(libtorch)}, expected {VERSION}",
                 "unset it to have the right one downloaded")
        compile_graphs(libtorch, cache_root())
        return

    if os.environ.get("LIBTORCH"):
        libtorch = Path(os.environ["LIBTORCH"]).expanduser().resolve()
        reason = check(libtorch)
        if reason:
            fail(f"LIBTORCH: {reason}", "unset LIBTORCH to have the right one downloaded")
        say(f"using {libtorch} (from LIBTORCH)")
        write_cargo_config(libtorch)
        return

    host = (platform.system(), platform.machine())
    if host not in WHEELS:
        fail(f"no libtorch {VERSION} wheel is known for {host[0]} on {host[1]}", "set LIBTORCH to a libtorch 2.11 built for this machine")
    if arguments.cuda and host[0] != "Linux":
        fail("--cuda is for Linux; there is no CUDA on this system")

    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    home = root / f"libtorch-{VERSION}-{'cuda' if arguments.cuda else 'cpu'}"
    libtorch = home / "torch" if arguments.cuda else home
    with only_one(root / "libtorch.lock"):
        if home.exists():
            reason = check(libtorch)
            if reason:
                say(f"{reason}; setting it up anew")
                shutil.rmtree(home)
        # What an interrupted run left behind; the lock says that nobody is using it.
        for leftover in root.glob("libtorch.partial.*"):
            shutil.rmtree(leftover)
        if not home.exists():
            work = Path(tempfile.mkdtemp(dir=root, prefix="libtorch.partial."))
            try:
                target = work / "libtorch"
                target.mkdir()
                if arguments.cuda:
                    install_cuda(target)
                else:
                    wheels = [download(*wheel, work / f"wheel{i}") for i, wheel in enumerate(WHEELS[host])]
                    say("unpacking headers and CPU libraries")
                    unpack_cpu(wheels, target)
                reason = check(target / "torch" if arguments.cuda else target)
                if reason:
                    fail(f"unpacked, but {reason}")
                os.rename(target, home)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        if arguments.cuda:
            compile_graphs(libtorch, root)
    say(f"{VERSION} is ready in {libtorch}")
    write_cargo_config(libtorch)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("interrupted; nothing was installed")
