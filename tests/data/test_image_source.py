"""Decoded and cropped images: what they are, that threads and batches change nothing, and what is damaged."""

import io
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from bsjax import InvalidArgument
from bsjax.data import ImageFolder, ImageSource
from bsjax.data.crops import random_crop
from bsjax.data.image_reader import decode
from bsjax.errors import RunError

SIZES = [(40, 60), (60, 40), (33, 33), (90, 30), (48, 64), (16, 16), (50, 50)]


def encoded(pixels, kind="JPEG", mode="RGB"):
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


def noise(index, size):
    small = np.random.RandomState(index).randint(256, size=(6, 6, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1]))


class Files:
    """Images in memory."""

    class_names, fingerprint = ("a", "b"), "in memory"

    def __init__(self, images):
        self.images, self.labels = images, np.arange(len(images), dtype=np.int32) % 2
        self.names = [f"{i}.jpg" for i in range(len(images))]

    def read(self, index):
        return self.images[index]


@pytest.fixture(scope="module")
def files():
    return Files([encoded(noise(index, size)) for index, size in enumerate(SIZES)])


def test_the_center_of_an_image_keeps_its_pixels():
    pixels = noise(0, (16, 24))
    source = ImageSource(Files([encoded(pixels, "PNG")]), pixels=14, train=False)
    found = source.gather(np.array(0))
    np.testing.assert_array_equal(found["image"], pixels[1:15, 5:19], strict=True)
    np.testing.assert_array_equal(found["label"], np.int32(0), strict=True)
    np.testing.assert_array_equal(source.gather(np.array(0), np.array(9))["image"], found["image"])
    assert (len(source), source.nbytes, source.takes_positions) == (1, None, False)


def test_a_training_image_is_its_positions_crop_resized(files):
    source = ImageSource(files, pixels=20, train=True, seed=4)
    positions = np.arange(100, 100 + 3 * len(SIZES))
    found = source.gather(np.arange(len(positions)) % len(SIZES), positions)["image"]
    mirrored = 0
    for image, position, index in zip(found, positions.tolist(), list(range(len(SIZES))) * 3, strict=True):
        whole = Image.open(io.BytesIO(files.images[index]))
        top, left, height, width, is_mirrored = random_crop(4, position, whole.height, whole.width)
        part = whole.crop((left, top, left + width, top + height)).resize((20, 20), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image[:, ::-1] if is_mirrored else image, np.asarray(part))
        mirrored += is_mirrored
    assert 0 < mirrored < len(positions)


@pytest.mark.parametrize("num_threads", [1, 2, 4])
def test_threads_batches_and_order_change_nothing(files, num_threads):
    source = ImageSource(files, 16, train=True, num_threads=num_threads)
    random = np.random.RandomState(0)
    indices, positions = random.randint(len(SIZES), size=(6, 4)), random.randint(2**40, size=(6, 4))
    expected = ImageSource(files, 16, train=True, num_threads=3).gather(indices, positions)
    assert expected["image"].shape == (6, 4, 16, 16, 3)
    for row in reversed(range(6)):
        found = source.gather(indices[row], positions[row])
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[name][row], strict=True)
    others = ImageSource(files, 16, train=True, seed=1).gather(indices, positions)["image"]
    assert (others != expected["image"]).any(axis=(2, 3, 4)).all()


@pytest.mark.parametrize("kind_and_mode", ["JPEG L", "JPEG CMYK", "PNG RGBA", "PNG LA", "PNG L"])
def test_other_kinds_of_images_are_converted(kind_and_mode):
    grey = np.full((20, 30, 3), 96, np.uint8)
    source = ImageSource(Files([encoded(grey, *kind_and_mode.split())]), 10, train=True)
    np.testing.assert_allclose(source.gather(np.zeros(3, int))["image"].astype(int), 96, atol=3)


def test_both_decoders_have_the_same_bits(monkeypatch):
    """Whatever simplejpeg does not decode, such as CMYK, Pillow does."""
    random, images = np.random.RandomState(0), []
    for subsampling in (0, 1, 2):
        for mode, progressive in (("RGB", False), ("RGB", True), ("L", False), ("CMYK", False)):
            file = io.BytesIO()
            pixels = random.randint(256, size=(37, 53, 3)).astype(np.uint8)
            options = {"subsampling": subsampling, "progressive": progressive}
            Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
            images.append(file.getvalue())
    simplejpeg, decoded, fast = pytest.importorskip("simplejpeg"), [], []
    original = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda data: fast.append(data) or original(data))
    decoded.append([decode(data) for data in images])
    assert fast == [data for data in images if Image.open(io.BytesIO(data)).mode != "CMYK"]
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    decoded.append([decode(data) for data in images])
    assert len(fast) == 9
    for one, other in zip(*decoded, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def damaged(files, *indices):
    return Files([image[: len(image) // 2] if i in indices else image for i, image in enumerate(files.images)])


def test_a_damaged_image_is_named(files):
    source = ImageSource(damaged(files, 2, 3), 8, train=False, num_threads=3)
    np.testing.assert_array_equal(source.gather(np.array([0, 1]))["label"], [0, 1])
    for _ in range(2):  # the threads live on
        with pytest.raises(RunError, match=r"^example 3 is damaged, 3.jpg: .*; with on_bad_example=skip_with_record "):
            source.gather(np.array([0, 1, 3, 4]))
    with pytest.raises(RunError, match=r"^example 0 is damaged, 0.jpg: cannot identify image file"):
        ImageSource(Files([b"no image"]), 8, train=True).gather(np.array([0]))


def test_a_damaged_image_is_skipped_and_recorded(files, caplog):
    source = ImageSource(damaged(files, 2, 3, 6), 8, train=True, on_bad_example="skip_with_record")
    intact = ImageSource(files, 8, train=True)
    indices, positions = np.array([0, 2, 3, 4, 6]), np.arange(5)
    expected = intact.gather(np.array([0, 4, 4, 4, 0]), positions)
    for _ in range(2):
        found = source.gather(indices, positions)
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[name])
    assert sorted(source.bad_examples) == [2, 3, 6]
    assert source.bad_examples[6].startswith("6.jpg: ")
    assert len(caplog.messages) >= 3
    all_bad = ImageSource(Files([b"no image"] * 3), 8, train=True, on_bad_example="skip_with_record")
    with pytest.raises(RunError, match=r"^3 examples from 1 on are damaged, the last one 0.jpg: cannot identify"):
        all_bad.gather(np.array([1]))


def test_a_disk_that_is_gone_is_not_skipped(files):
    class Gone(Files):
        def read(self, index):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match=r"^the disk is gone$"):
        ImageSource(Gone(files.images), 8, train=True, on_bad_example="skip_with_record").gather(np.arange(4))


def test_no_more_threads_than_asked_for_decode(files):
    names = set()

    class Watched(Files):
        def read(self, index):
            names.add(threading.current_thread().name)
            return super().read(index)

    ImageSource(Watched(files.images), 8, train=False, num_threads=2).gather(np.arange(60) % len(SIZES))
    assert names and names <= {"decode_0", "decode_1"}


def test_fingerprints_differ_with_what_the_examples_depend_on(files):
    others = [
        ImageSource(files, 8, train=False),
        ImageSource(files, 9, train=False),
        ImageSource(files, 8, train=True),
        ImageSource(files, 8, train=True, seed=1),
    ]
    assert len({source.fingerprint for source in others}) == 4
    assert ImageSource(files, 8, train=True, num_threads=1).fingerprint == others[2].fingerprint


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"pixels": 0}, "pixels is 0; it must be a whole number >= 1; nearest: 1"),
        ({"seed": -1}, "seed is -1; it must be a whole number >= 0; nearest: 0"),
        ({"num_threads": 0}, "num_threads is 0; it must be a whole number >= 1; nearest: 1"),
        ({"num_workers": -1}, "num_workers is -1; it must be a whole number >= 0; nearest: 0"),
        (
            {"on_bad_example": "skip"},
            "on_bad_example is 'skip'; it must be one of fail, skip_with_record; nearest: skip_with_record",
        ),
    ],
)
def test_bad_input(files, option, message):
    with pytest.raises(InvalidArgument) as refusal:
        ImageSource(files, **({"pixels": 8, "train": True} | option))
    assert str(refusal.value) == message


def test_without_pillow_it_names_the_extra(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(RunError, match=r"^decoding images needs Pillow: pip install bsjax\[imagenet\]$"):
        ImageSource(files, 8, train=True).gather(np.array([0]))


def test_a_folder_of_real_files(tmp_path, files):
    for index, (name, data) in enumerate(zip(["n02", "n01", "n01"], files.images, strict=False)):
        (tmp_path / name / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "images" / f"{index}.JPEG").write_bytes(data)
    source = ImageSource(ImageFolder(tmp_path), 12, train=True)
    expected = ImageSource(Files([files.images[i] for i in (1, 2, 0)]), 12, train=True).gather(np.arange(3))
    found = source.gather(np.arange(3))
    np.testing.assert_array_equal(found["image"], expected["image"])
    np.testing.assert_array_equal(found["label"], [0, 0, 1])
