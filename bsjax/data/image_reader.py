"""Decodes and crops an image by its number and its position in the stream, in whatever thread or process."""

import io
from typing import Any, NamedTuple

import numpy as np

from bsjax.data.crops import center_crop, random_crop
from bsjax.data.image_files import ImageFiles
from bsjax.errors import RunError

_MAX_BAD_IN_A_ROW = 100


class ReadImage(NamedTuple):
    """An image of the wanted size, and what came of reading it."""

    pixels: np.ndarray  # uint8 [pixels, pixels, 3]
    image: int  # which image it is
    bad: dict[int, str]  # of those before it that are damaged, by index: their files and what is wrong


class ImageReader(NamedTuple):
    """Reads images of many sizes as crops of one size; a value, which can be sent to other processes."""

    files: ImageFiles
    pixels: int  # height and width of what is read
    train: bool  # whether to crop at random
    seed: int  # of the crops
    skips: bool  # whether the next intact image takes the place of a damaged one

    def read(self, index: int, position: int) -> ReadImage:
        """The crop of an image at a position in the stream.

        Raises:
          RunError: the image is damaged, and with `skips` so are the next ones; or Pillow is not installed.
        """
        size, bad = len(self.files.labels), dict[int, str]()
        for candidate in (np.arange(index, index + min(_MAX_BAD_IN_A_ROW, size)) % size).tolist():
            data = self.files.read(candidate)  # its failure is the disk's, and no image's
            try:
                return ReadImage(self._cropped(decode(data), position), candidate, bad)
            except (MemoryError, RunError):
                raise
            except Exception as error:  # a damaged image can raise nearly any error
                what = " ".join(str(error).split("<_io")[0].split())  # without the address of the bytes
                bad[candidate] = f"{self.files.names[candidate]}: {what or type(error).__name__}"
            if not self.skips:
                hint = "with on_bad_example=skip_with_record the next intact one takes its place"
                raise RunError(f"example {candidate} is damaged, {bad[candidate]}; {hint}")
        raise RunError(f"{len(bad)} examples from {index} on are damaged, the last one {bad[candidate]}")

    def _cropped(self, image: np.ndarray, position: int) -> np.ndarray:
        height, width, _ = image.shape
        crop = random_crop(self.seed, position, height, width) if self.train else center_crop(height, width)
        part = image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        pillow = _pillow()
        resized = pillow.fromarray(part).resize((self.pixels, self.pixels), pillow.Resampling.BILINEAR)
        # Pillow mirrors ten times as fast as numpy copies what is mirrored.
        return np.asarray(resized.transpose(pillow.Transpose.FLIP_LEFT_RIGHT) if crop.is_mirrored else resized)


def decode(data: bytes) -> np.ndarray:
    """The pixels of a JPEG, a PNG, or what else Pillow reads: uint8 [height, width, 3], RGB.

    JPEGs are decoded by simplejpeg, where it is installed, and what that refuses by Pillow: both are libjpeg-turbo, and
    have the same bits. `scripts/benchmark.py --part=input` measures both.

    Raises:
      RunError: Pillow is not installed.
      Exception: of nearly any kind, if the image is damaged.
    """
    pillow = _pillow()
    if (pixels := _decoded_by_simplejpeg(data, pillow.MAX_IMAGE_PIXELS)) is not None:
        return pixels
    with pillow.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


def _decoded_by_simplejpeg(data: bytes, max_pixels: int | None) -> np.ndarray | None:
    """The pixels, or None for what Pillow is to decide: other formats, CMYK, damaged and enormous images."""
    try:
        import simplejpeg
    except ImportError:
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        if colors in ("YCbCr", "Gray") and (max_pixels is None or height * width <= max_pixels):
            return simplejpeg.decode_jpeg(data)
    except ValueError:
        pass
    return None


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise RunError("decoding images needs Pillow: pip install bsjax[imagenet]") from None
    return Image
