#!/usr/bin/env python3
"""Writes what a fuzz target begins with, made of the tests' fixtures:  fuzz/seeds.py TARGET FOLDER

Targets that read several kinds of files take a first byte that says which kind the rest is; it is put there here.
"""
import gzip
import io
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests/fixtures"


def torch(*patterns):
    return {path.name: path.read_bytes() for pattern in patterns for path in (FIXTURES / "torch").glob(pattern)}


def pickle():
    """The pickles inside of archives, and legacy streams, which begin with three of them."""
    seeds = {}
    for path in [*(FIXTURES / "torch").glob("*.zip.pth"), *(FIXTURES / "torch").glob("*.big.pth")]:
        archive = zipfile.ZipFile(path)
        seeds[path.name] = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    for name, data in torch("*.legacy.pth").items():
        second = data.index(b".") + 1
        seeds[name] = data[data.index(b".", second) + 1 :]
    return seeds


def image():
    kinds = {".jpg", ".png", ".webp", ".bmp", ".tif", ".gif"}
    return {path.name: path.read_bytes() for path in (FIXTURES / "images").iterdir() if path.suffix in kinds}


def idx():
    def file(extents, content):
        return bytes([0, 0, 8, len(extents)]) + struct.pack(f">{len(extents)}I", *extents) + content

    grey, colour = file([3, 2, 2], bytes(range(12))), file([2, 2, 2, 3], bytes(range(24)))
    labels = file([2], b"\0\7")
    plain = {"grey": b"\0" + grey, "colour": b"\0" + colour, "labels": b"\2" + labels}
    packed = {"grey.gz": b"\1" + gzip.compress(grey), "labels.gz": b"\3" + gzip.compress(labels)}
    twice = {"members.gz": b"\1" + gzip.compress(grey[:20]) + gzip.compress(grey[20:])}
    return plain | packed | twice


def list_files():
    texts = {
        "bare": b"a.png\nb.jpg\n",
        "labels": b"\xef\xbb\xbf# a comment\r\nPath,Label\r\nb.png,dog\r\n\r\na.png,cat\n",
        "numbers": b"a.png,10\nb.png,9\nc.png,-4000000000",
        "quotes": b'"x, y.png",1\n"say ""hi"".png","two words"\n',
        "bytes": b"/abs/z.png\n../up.png\n\xff.png\n",
    }
    return {name: b"\0" + text for name, text in texts.items()} | {"tabs": b"\1a, b.png\tx\n"}


def cifar():
    record = bytes(range(256)) * 12
    binary = {10: b"\3" + record, 100: b"\1\5" + record}
    py10, py100 = FIXTURES / "cifar/cifar-10-batches-py", FIXTURES / "cifar/cifar-100-python"
    names = {10: b"cat\ndog\n" * 5, 100: b"".join(b"class%d\n" % i for i in range(100))}
    seeds = {
        "binary10": b"\0" + binary[10] * 2,
        "binary100": b"\1" + binary[100],
        "python10": b"\2" + (py10 / "test_batch").read_bytes(),
        "python100": b"\3" + (py100 / "test").read_bytes(),
        "names10": b"\4" + names[10],
        "names100": b"\5" + names[100],
        "meta10": b"\6" + (py10 / "batches.meta").read_bytes(),
        "meta100": b"\7" + (py100 / "meta").read_bytes(),
    }
    for path in (FIXTURES / "cifar/rewritten").iterdir():
        seeds[path.name] = b"\2" + path.read_bytes()
    batches = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    archives = {
        "tar10": {f"cifar-10-batches-bin/{name}": binary[10] for name in batches},
        "tar100": {"cifar-100-binary/train.bin": binary[100], "cifar-100-binary/test.bin": binary[100]},
        "tarpy": {f"cifar-100-python/{name}": (py100 / name).read_bytes() for name in ("train", "test", "meta")},
        "outside": {"../../cifar-100-binary/train.bin": binary[100], "/test.bin": binary[100]},
    }
    for name, files in archives.items():
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for path, content in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        seeds[name] = b"\11" + out.getvalue()
        seeds[f"{name}.gz"] = b"\10" + gzip.compress(out.getvalue())
    return seeds


def config():
    text = (ROOT / "scripts/demo.toml").read_text()
    extra = {
        "softmax": "n-negatives = 0\n",
        "nce": 'objective = "nce"\nnormalizer = "2876934"\nn-negatives = 64\n',
        "sampled": 'objective = "sampled-softmax"\nproximal = 0.5\nschedule = "cosine"\nwarmup-epochs = 1.5\n',
        "augment": "image-size = 64\n[augmentation]\nflip = 0.5\nscale = [0.1, 1.0]\n[augmentation.jitter]\nhue = 0.5\n",
        "head": 'arch = "resnet50"\nfamily = "imagenet"\nhead = "none"\nmilestones = [1, 2]\n',
        "machine": 'device = "cuda:1"\nprecision = "bf16"\nthreads = 2\nsave-every = 0.5\nmax-steps = 9\n',
    }
    return {"demo": text.encode()} | {name: text.encode() for name, text in extra.items()}


def safetensors(metadata, tensors):
    """A file in the form of our checkpoints; the target puts the checksum in."""
    entries, at, body = {}, 0, b""
    for name, (dtype, shape, content) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(content)]}
        at, body = at + len(content), body + content
    first = {"blake3": "0" * 64, "format": "lemniscate checkpoint 1"} | metadata
    header = json.dumps({"__metadata__": first} | entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + body


def checkpoint():
    small = safetensors({"note": "x"}, {"bank.memory": ("F32", [1, 2], b"\0\0\0\0\0\0\x80\x3f"), "n": ("I64", [], bytes(8))})
    program = next((p for p in (ROOT / "target/release/lemniscate", ROOT / "target/debug/lemniscate") if p.exists()), None)
    if program is None:
        sys.exit("build the program first (make build): a run of it makes the seed checkpoint")
    flags = "--width 1 --embed-dim 2 --image-size 8 -b 8 --nce-k 2 --max-steps 1 --threads 1 -j 1 --precision fp32"
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["train", "synthetic:16x8", "--out", "run", "--quiet", "--monitor", "none", *flags.split()]
        subprocess.run([program, *arguments], cwd=folder, check=True)
        whole = (pathlib.Path(folder) / "run/last.ckpt").read_bytes()
    return {"small": b"\0" + small, "run": b"\0" + whole, "unmended": b"\1" + whole}


def run_folder():
    lines = (
        b'{"kind":"step","epoch":1,"step":7,"loss":8.5,"lr":0.03,"images_per_s":150.0,"data_ms":0.5,"step_ms":850.25,'
        b'"ln_z":11.5,"grad_norm":0.25}\n'
        b'{"kind":"eval","epoch":1,"metric":"knn_top1","value":34.5,"k":200,"temperature":0.1,"bank":"live",'
        b'"layer":"embedding","seconds":2.5}\n'
        b'{"kind":"note","epoch":1,"step":7,"text":"resumed"}\n{"kind":"gpu","watts":300}\n'
    )
    folder = struct.pack("<I", 1) + b"a" + struct.pack("<QIII", 1, 2, 5, 10) + b"1.png2.png"
    index = b"LMNINDEX" + struct.pack("<IQQQ", 1, 1, 2, 3) + folder
    return {"metrics": b"\0" + lines, "torn": b"\0" + lines[:-9], "index": b"\1" + index + bytes(32), "hashed": b"\2" + index}


TARGETS = {
    "pickle": pickle,
    "torch_legacy": lambda: torch("*.legacy.pth", "*.tar.pth", "*.t7", "*.tar"),
    "torch_zip": lambda: torch("*.zip.pth", "*.big.pth", "quantised.pth", "script.pt"),
    "image": image,
    "idx": idx,
    "cifar": cifar,
    "list": list_files,
    "config": config,
    "checkpoint": checkpoint,
    "run_folder": run_folder,
    "packed": lambda: {path.name: path.read_bytes() for path in (FIXTURES / "packed").glob("*.pack")},
}


def main():
    target, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in TARGETS.get(target, dict)().items():
        (folder / name).write_bytes(content)
    kept = ROOT / "fuzz/seeds" / target
    if kept.is_dir():
        for path in kept.iterdir():
            shutil.copy(path, folder / path.name)


if __name__ == "__main__":
    main()
