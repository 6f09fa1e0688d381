"""Decoding and cropping JPEGs as training does: `scripts/benchmark.py --part=input`.

    python scripts/benchmark.py --part=input --repeats=9 --output=input.json

It makes JPEGs of 500×375 pixels and ImageNet's size in bytes, or takes those of --input_images, a folder, and crops
them to 224 pixels. First the sides take turns in one thread: `ImageSource`, the loop with Pillow that one would write
by hand, and both decoders alone; their images/s are per second of a core's work, whatever else the machine does. Then
threads and worker processes of `ImageSource` take turns with as many as there are cores, by the clock, and the work of
the process that receives the workers' images is timed, and the memory of this process is looked at after the first and
after the last of the turns. The arithmetic at the end says how many cores an accelerator needs. docs/imagenet.md has
the numbers.
"""

import io
import os
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from bsjax.data import ImageFolder, ImageSource
from bsjax.data.crops import random_crop
from bsjax.data.image_reader import decode
from bsjax.errors import InvalidArgument

_IMAGES = flags.DEFINE_string("input_images", None, "--part=input: a folder of JPEGs; default, made ones.")
PIXELS = 224
# Images/s that ResNet-50 trains with at 224 pixels: assumptions, not measurements. At 24.5 GFLOP per image they are
# 7 % of an H200's 989 TFLOP/s and 19 % of the 197 of each of eight v5e.
TRAINED = {"H200": 3_000, "v5e-8": 12_000}


def measure(repeats: int, quick: bool) -> dict[str, Any]:
    """Times every side.

    Args:
      repeats: rounds of turns.
      quick: few images and rounds; the numbers mean nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        if _IMAGES.value is None:
            write_images(pathlib.Path(folder, "images", "all"), 8 if quick else 128)
        files = _folder(_IMAGES.value or str(pathlib.Path(folder, "images")))
        data = [files.read(index) for index in range(min(len(files.names), 256))]
        results: dict[str, Any] = {"images": len(data), "mean_bytes": round(statistics.mean(map(len, data)))}
        results["per_core"] = _rates(_sides(files, data), len(data), repeats, time.process_time)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        parallel = _parallel(files, len(data), cores)
        results["cores"], results["all_cores"] = cores, _rates(parallel, len(data), repeats, time.perf_counter)
        received = _rates({"workers": parallel["workers"]}, len(data), repeats, time.process_time)
        results["received_images_per_s"] = received["workers"]["images_per_s"]
        results["resident_mb"] = _resident_mb(parallel["threads"], 1 + repeats)
    rate = results["per_core"]["ImageSource"]["images_per_s"]
    results["cores_needed"] = {name: -(-trained // rate) for name, trained in TRAINED.items()}
    print(markdown(results), flush=True)
    return results


def write_images(folder: pathlib.Path, count: int) -> None:
    """JPEGs of 500×375 pixels whose size in bytes, about 110,000, is that of ImageNet's: smooth colours and noise."""
    folder.mkdir(parents=True)
    for index in range(count):
        random = np.random.RandomState(index)
        smooth = Image.fromarray(random.randint(256, size=(12, 16, 3)).astype(np.uint8))
        colours = np.asarray(smooth.resize((500, 375), Image.Resampling.BICUBIC))
        noisy = colours + random.normal(0, 17, (375, 500, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{index:03}.jpg", quality=92)


def _folder(path: str) -> ImageFolder:
    try:
        return ImageFolder(path)
    except InvalidArgument as error:
        raise error.renamed("input_images") from None


def _sides(files: ImageFolder, data: Sequence[bytes]) -> dict[str, Callable[[int], Any]]:
    """What each side does in a round, in one thread."""
    source, every = ImageSource(files, PIXELS, train=True, num_threads=1), np.arange(len(data))
    # The decoders alone have the bytes in memory; the others read the files, which the system keeps in memory.
    return {
        "ImageSource": lambda turn: source.gather(every, every + turn * len(data)),
        "Pillow loop": lambda turn: [_by_pillow(files.read(i), turn * len(data) + i) for i in range(len(data))],
        "decoder alone": lambda turn: [decode(one) for one in data],
        "Pillow's decoder alone": lambda turn: [Image.open(io.BytesIO(one)).convert("RGB") for one in data],
    }


def _by_pillow(data: bytes, position: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    top, left, height, width, is_mirrored = random_crop(0, position, image.height, image.width)
    part = image.crop((left, top, left + width, top + height)).resize((PIXELS, PIXELS), Image.Resampling.BILINEAR)
    return np.asarray(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if is_mirrored else part)


def _parallel(files: ImageFolder, count: int, cores: int) -> dict[str, Callable[[int], Any]]:
    every = np.arange(count)
    threads = ImageSource(files, PIXELS, train=True, num_threads=cores)
    workers = ImageSource(files, PIXELS, train=True, num_workers=cores)
    return {
        "threads": lambda turn: threads.gather(every, every + turn * count),
        "workers": lambda turn: workers.gather(every, every + turn * count),
    }


def _rates(
    sides: Mapping[str, Callable[[int], Any]], count: int, repeats: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Images/s of each side, and how many times as fast the first side is; the sides take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(1 + repeats):  # the first one warms up
        for name, work in sides.items():
            start = clock()
            work(turn)
            seconds[name].append(clock() - start)
    first = np.array(next(iter(seconds.values()))[1:])
    return {
        name: {
            "images_per_s": count / statistics.median(times[1:]),
            "first_over_this": np.quantile(np.array(times[1:]) / first, (0.25, 0.5, 0.75)).tolist(),
        }
        for name, times in seconds.items()
    }


def _resident_mb(work: Callable[[int], Any], turns: int) -> tuple[float, float] | None:
    """Memory of this process in MB (10^6 bytes), after the first and after the last turn; None if there is no /proc."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return None
    found = []
    for turn in range(turns):
        work(turn)
        match = re.search(r"^VmRSS:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        assert match is not None
        found.append(1024 * int(match[1]) / 1e6)
    return found[0], found[-1]


def markdown(results: Mapping[str, Any]) -> str:
    """The tables of the documentation."""
    lines = [f"{results['images']} JPEGs of {results['mean_bytes']:,} bytes", ""]
    for title, rates in (("one core", results["per_core"]), (f"{results['cores']} cores", results["all_cores"])):
        first = next(iter(rates))
        lines += [f"| {title} | images/s | {first} over this |", "|---|---|---|"]
        for name, rate in rates.items():
            low, ratio, high = rate["first_over_this"]
            lines.append(f"| {name} | {rate['images_per_s']:,.0f} | {ratio:.2f} ({low:.2f}-{high:.2f}) |")
        lines.append("")
    lines += [f"one process receives at most {results['received_images_per_s']:,.0f} images/s from workers", ""]
    if results["resident_mb"]:
        before, after = results["resident_mb"]
        lines += [f"resident memory of the process: {before:.1f} MB, and {after:.1f} MB at the end", ""]
    lines += ["| ResNet-50 on | assumed images/s | cores that decode for it |", "|---|---|---|"]
    lines += [f"| {name} | {TRAINED[name]:,} | {count:.0f} |" for name, count in results["cores_needed"].items()]
    return "\n".join(lines)
