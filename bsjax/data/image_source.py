"""A source that decodes and crops images on the host, in threads or in processes."""

import concurrent.futures
import functools
import logging
import os
from collections.abc import Callable

import numpy as np

from bsjax.data.image_files import ImageFiles
from bsjax.data.image_reader import ImageReader, ReadImage
from bsjax.data.image_workers import ImageWorkers
from bsjax.errors import check_choice, check_whole

ON_BAD_EXAMPLE = ("fail", "skip_with_record")


class ImageSource:
    """Images of many sizes as examples of one size: {"image": uint8 [pixels, pixels, 3], "label": int32 []}.

    For training, the image is the random crop of `bsjax.data.crops.random_crop`, a function of the seed and the
    position in the stream: the same whatever the batch, the number of threads, workers, hosts and devices, and after a
    resume. For the evaluation it is the square of the centre. Both are resized with an antialiased triangle filter.
    Grey images, CMYK and PNG are converted to RGB.

    The libraries that decode and resize leave Python to other threads meanwhile, so threads keep some cores busy, and
    are faster there than processes, which send their images to this one. Workers are for hosts with more cores: see
    docs/imagenet.md.

    Args:
      files: where the images are: `ImageFolder` or `ImageRecords`.
      pixels: height and width of the examples, such as 224.
      train: whether to crop at random.
      seed: of the crops, a whole number >= 0.
      num_threads: that decode; default, one for each core that this process may use.
      num_workers: processes that decode in the place of threads; 0 for none.
      on_bad_example: "fail", or "skip_with_record": the next intact image takes the place of a damaged one, and
        `bad_examples` has the index of the latter and what is wrong with it.

    Raises:
      InvalidArgument: a value is out of range.

    `gather` raises RunError for a damaged image, with its index and file, if a worker was killed, or if Pillow is not
    installed.
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
        num_workers: int = 0,
    ):
        skips = check_choice("on_bad_example", on_bad_example, ON_BAD_EXAMPLE) != "fail"
        self._files, self._pixels = files, check_whole("pixels", pixels)
        self._reader = ImageReader(files, self._pixels, train, check_whole("seed", seed, 0), skips)
        default = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._num_threads = default if num_threads is None else check_whole("num_threads", num_threads)
        self._workers = ImageWorkers(self._reader, num_workers) if check_whole("num_workers", num_workers, 0) else None
        self.takes_positions = train
        self.bad_examples: dict[int, str] = {}

    def __len__(self) -> int:
        """The number of images."""
        return len(self._files.labels)

    @property
    def fingerprint(self) -> str:
        """That of the files, and what the examples depend on beside them."""
        crops = f"random crops of seed {self._reader.seed}" if self._reader.train else "crops of the centre"
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
        used = np.empty(len(wanted), np.int64)

        def fill(row: int, read: ReadImage) -> None:
            images[row], used[row] = read.pixels, read.image
            self._record(read.bad)

        if self._workers is not None and len(wanted) > 1:  # for a single one, none need be started
            for row, read in enumerate(self._workers.read(wanted, where)):
                fill(row, read)
        else:
            self._in_threads(len(wanted), lambda row: fill(row, self._reader.read(wanted[row], where[row])))
        labels = self._files.labels[used]
        return {"image": images.reshape(*indices.shape, *images.shape[1:]), "label": labels.reshape(indices.shape)}

    def _in_threads(self, num_rows: int, fill: Callable[[int], None]) -> None:
        """Calls `fill` for each row; raises the error of the first row that has one."""
        rows, errors = iter(range(num_rows)), dict[int, Exception]()  # each thread takes the next row

        def work(_: int) -> None:
            for row in rows:
                try:
                    fill(row)
                except Exception as error:
                    errors[row] = error
                    return

        list(self._threads.map(work, range(self._num_threads)))
        if errors:
            raise errors[min(errors)]

    @functools.cached_property
    def _threads(self) -> concurrent.futures.ThreadPoolExecutor:
        return concurrent.futures.ThreadPoolExecutor(self._num_threads, thread_name_prefix="decode")

    def _record(self, bad: dict[int, str]) -> None:
        for index, what in bad.items():
            if index not in self.bad_examples:
                logging.getLogger(__name__).warning("skipped example %d, %s", index, what)
                self.bad_examples[index] = what
