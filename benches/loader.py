"""Images per second that one core decodes and augments with torchvision; benches/loader.rs is our side.

    python benches/loader.py DIR [--size 224] [--seconds 5] [--limit 1000]

Takes the images of DIR in a fixed random order, each by the published training transform, on one thread and
without a DataLoader; prints one JSON object with the milliseconds that each part takes for an image.
"""

import argparse
import json
import pathlib
import random
import time

import torch
import torchvision.transforms as T
from PIL import Image

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--seconds", type=float, default=5)
parser.add_argument("--limit", type=int, default=1000)
args = parser.parse_args()
torch.set_num_threads(1)
torch.manual_seed(1)

endings = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
files = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in endings)
random.Random(1).shuffle(files)
files = files[: args.limit]

crop, jitter, grayscale = T.RandomResizedCrop(args.size, scale=(0.2, 1)), T.ColorJitter(0.4, 0.4, 0.4, 0.4), T.RandomGrayscale(0.2)
if args.size <= 64:
    transform = T.Compose([crop, jitter, grayscale])
    normalize = T.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
else:
    transform = T.Compose([crop, grayscale, jitter, T.RandomHorizontalFlip()])
    normalize = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
to_tensor = T.Compose([T.ToTensor(), normalize])


def load(path):
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")


for path in files:  # the first pass brings the files into memory and is not measured
    load(path)
images, decode, augment, tensor = 0, 0.0, 0.0, 0.0
start = time.perf_counter()
while time.perf_counter() - start < args.seconds:
    for path in files:
        begin = time.perf_counter()
        image = load(path)
        decoded = time.perf_counter()
        image = transform(image)
        augmented = time.perf_counter()
        to_tensor(image)
        end = time.perf_counter()
        decode, augment, tensor, images = decode + decoded - begin, augment + augmented - decoded, tensor + end - augmented, images + 1
        if end - start >= args.seconds:
            break
total = time.perf_counter() - start
print(
    json.dumps(
        {
            "program": "torchvision",
            "size": args.size,
            "files": len(files),
            "images": images,
            "decode_ms": decode / images * 1e3,
            "augment_ms": augment / images * 1e3,
            "tensor_ms": tensor / images * 1e3,
            "images_per_s": images / total,
        }
    )
)
