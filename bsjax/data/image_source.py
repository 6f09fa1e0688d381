"""A source that decodes and crops images on the host, in threads."""

import concurrent.futures
import functools
import io
import logging
import os
from typing import Any

import numpy as np

from bsjax.data.crops import Crop, center_crop, random_crop
from bsjax.data.image_files import ImageFiles
from bsjax.errors import RunError, check_choice, check_whole

ON_BAD_EXAMPLE = ("fail", "skip_with_record")
_MAX_BAD_IN_A_ROW = 100


class ImageSource:
    """Images of many sizes as examples of one size: {"image": uint8 [pixels, pixels, 3], "label": int32 []}.

    For training, the image is the random crop of `bsjax.data.crops.random_crop`, a function of the seed and the
    position in the stream: the same whatever the batch, the number of threads, hosts and devices, and after a resume.
    For the evaluation it is the square of the centre. Both are resized with an antialiased triangle filter. Grey
    images, CMYK and PNG are converted to RGB.

    Args:
      files: where the images are: `ImageFolder` or `ImageRecords`.
      pixels: height and width of the examples, such as 224.
      train: whether to crop at random.
      seed: of the crops, a whole number >= 0.
      num_threads: that decode; default, one for each core.
      on_bad_example: "fail", or "skip_with_record": the next intact image takes the place of a damaged one, and
        `bad_examples` has the index of the latter and what is wrong with it.

    Raises:
      InvalidArgument: a value is out of range.

    `gather` raises RunError for a damaged image, with its index and file, or if Pillow is not installed.
    """

    nbytes = None

    def __init__(
        self,
        files: ImageFiles,
        pixels: int,
        train: bool,
        seed: int = 0,
        num_threads: int | None = None,
        on_bad_example: str = "fail",
    ):
        self._files, self._pixels, self._train = files, check_whole("pixels", pixels), train
        self._seed = check_whole("seed", seed, 0)
        default = os.cpu_count() or 1
        self._num_threads = default if num_threads is None else check_whole("num_threads", num_threads)
        self._skips = check_choice("on_bad_example", on_bad_example, ON_BAD_EXAMPLE) != "fail"
        self.takes_positions = train
        self.bad_examples: dict[int, str] = {}

    def __len__(self) -> int:
        """The number of images."""
        return len(self._files.names)

    @property
    def fingerprint(self) -> str:
        """That of the files, and what the examples depend on beside them."""
        crops = f"random crops of seed {self._seed}" if self._train else "crops of the centre"
        return f"{self._files.fingerprint}, {crops}, {self._pixels} pixels"

    def gather(self, indices: np.ndarray, positions: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The examples of integer indices of any shape.

        Args:
          indices: of the images.
          positions: in the stream, of the shape of indices; default, the indices.
        """
        indices = np.asarray(indices)
        wanted = indices.reshape(-1).tolist()
        where = wanted if positions is None else np.asarray(positions).reshape(-1).tolist()
        images = np.empty((len(wanted), self._pixels, self._pixels, 3), np.uint8)
        labels = np.empty(len(wanted), np.int32)

        def fill(i: int) -> None:
            images[i], labels[i] = self._example(wanted[i], where[i])

        for _ in self._threads.map(fill, range(len(wanted))):  # raises what a thread has raised
            pass
        return {"image": images.reshape(*indices.shape, *images.shape[1:]), "label": labels.reshape(indices.shape)}

    @functools.cached_property
    def _threads(self) -> concurrent.futures.ThreadPoolExecutor:
        return concurrent.futures.ThreadPoolExecutor(self._num_threads, thread_name_prefix="decode")

    def _example(self, index: int, position: int) -> tuple[np.ndarray, np.int32]:
        count = min(_MAX_BAD_IN_A_ROW, len(self))
        for candidate in (np.arange(index, index + count) % len(self)).tolist():
            data = self._files.read(candidate)  # its failure is the disk's, and no image's
            try:
                return self._decoded(data, position), self._files.labels[candidate]
            except (MemoryError, RunError):
                raise
            except Exception as error:  # a damaged image can raise nearly any error
                what = " ".join(str(error).split("<_io")[0].split())  # without the address of the bytes
                self._record(candidate, f"{self._files.names[candidate]}: {what or type(error).__name__}")
        raise RunError(f"{count} examples from {index} on are damaged, the last one {self.bad_examples[candidate]}")

    def _decoded(self, data: bytes, position: int) -> np.ndarray:
        pillow = _pillow()
        with pillow.open(io.BytesIO(data)) as opened:
            opened.load()
            crop = self._crop(opened.height, opened.width, position)
            part = opened.crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)).convert("RGB")
        pixels = np.asarray(part.resize((self._pixels, self._pixels), pillow.Resampling.BILINEAR))
        return pixels[:, ::-1] if crop.is_mirrored else pixels

    def _crop(self, height: int, width: int, position: int) -> Crop:
        return random_crop(self._seed, position, height, width) if self._train else center_crop(height, width)

    def _record(self, index: int, what: str) -> None:
        if not self._skips:
            hint = "with on_bad_example=skip_with_record the next intact one takes its place"
            raise RunError(f"example {index} is damaged, {what}; {hint}") from None
        if index not in self.bad_examples:
            logging.getLogger(__name__).warning("skipped example %d, %s", index, what)
        self.bad_examples[index] = what


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise RunError("decoding images needs Pillow: pip install bsjax[imagenet]") from None
    return Image
