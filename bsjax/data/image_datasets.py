"""Data sets of images of many sizes, such as ImageNet, by name: prepared records, or folders of class folders.

`DATA_DIR/NAME-train` and `DATA_DIR/NAME-validation` hold records, which `scripts/prepare_data.py` writes; or else
`DATA_DIR/NAME` holds the folders `train` and `validation` (or `val`, or `test`) of class folders.
"""

import json
import pathlib

import numpy as np

from bsjax.data import cache
from bsjax.data.dataset import Dataset
from bsjax.data.image_files import ImageFiles, ImageFolder, ImageRecords, holds_image_records
from bsjax.data.image_reader import decode
from bsjax.data.image_source import ImageSource
from bsjax.errors import InvalidArgument, RunError

TRAIN, VALIDATION = "train", "validation"
_VALIDATIONS = (VALIDATION, "val", "test")
_MOMENTS = "moments.json"
_MAX_MEASURED = 2_000  # images that the mean and the standard deviation are of

# Of the training images' pixels, as most published recipes have them, over 255.
_IMAGENET = "imagenet2012"
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def splits_in(folder: str | pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders of class folders, by split, if a folder has both; else {}."""
    folder = pathlib.Path(folder)
    found = [folder / name for name in _VALIDATIONS if (folder / name).is_dir()]
    return {TRAIN: folder / TRAIN, VALIDATION: found[0]} if found and (folder / TRAIN).is_dir() else {}


def has_images(name: str, data_dir: cache.DataDir = None) -> bool:
    """Whether there is a data set of images of many sizes by this name, complete or not."""
    folder = cache.dataset_dir(name, data_dir)
    return bool(splits_in(folder)) or holds_image_records(cache.dataset_dir(f"{name}/{TRAIN}", data_dir))


def image_dataset_names(data_dir: cache.DataDir = None) -> list[str]:
    """The names of the data sets in the folder whose images have many sizes."""
    folders = sorted(cache.resolve_data_dir(data_dir).glob("[!.]*"))
    names = [folder.name.removesuffix(f"-{TRAIN}") for folder in folders if folder.name.endswith(f"-{TRAIN}")]
    return [name for name in [*names, *(folder.name for folder in folders)] if has_images(name, data_dir)]


def load_images(
    name: str,
    image_size: int,
    data_dir: cache.DataDir = None,
    seed: int = 0,
    on_bad_example: str = "fail",
    num_workers: int = 0,
) -> Dataset:
    """A data set of images of many sizes: random crops of them to train on, and squares of their centres to test on.

    Args:
      name: of the data set, such as "imagenet2012".
      image_size: height and width of the examples, in pixels.
      data_dir: the folder of data sets; default, `$BSJAX_DATA_DIR`, else `~/.cache/bsjax`.
      seed: of the crops.
      on_bad_example: what to do with a damaged image, see `ImageSource`.
      num_workers: processes that decode, see there.

    Returns:
      A `Dataset`, whose mean and standard deviation are the published ones for imagenet2012; for others, those of 2,000
      training images, in which each image has the same weight.

    Raises:
      InvalidArgument: a split is missing, incomplete or damaged, the splits differ in their classes, or a value is out
        of range.
      RunError: no training image can be decoded, or a package is not installed.
    """
    files = {split: _open(name, split, data_dir) for split in (TRAIN, VALIDATION)}
    train, validation = files.values()
    if different := sorted(set(train.class_names) ^ set(validation.class_names)):
        allowed = f"one whose splits have the same classes; only one has {different[0]}"
        raise InvalidArgument("dataset", name, allowed)
    try:
        crops = ImageSource(train, image_size, True, seed, None, on_bad_example, num_workers)
        squares = ImageSource(validation, image_size, False, seed, None, on_bad_example, num_workers)
    except InvalidArgument as error:
        raise error.renamed("image_size" if error.name == "pixels" else error.name) from None
    return Dataset(name, crops, squares, train.class_names, _moments(name, train, data_dir))


def write_moments(files: ImageFiles, folder: pathlib.Path) -> None:
    """Measures mean and standard deviation, beside prepared records, unless they are there or nothing is decodable."""
    path = folder / _MOMENTS
    if not path.exists() and (found := measure_moments(files)) is not None:
        path.write_text(json.dumps([moment.tolist() for moment in found]) + "\n", encoding="utf-8")


def measure_moments(files: ImageFiles) -> tuple[np.ndarray, np.ndarray] | None:
    """float64 [3] each: mean and standard deviation of the pixels; None if no image can be decoded.

    They are of 2,000 images at regular distances, each with the same weight whatever its size; damaged ones are left
    out.
    """
    shares, values = [], np.arange(256.0)
    for index in np.linspace(0, len(files.labels) - 1, min(_MAX_MEASURED, len(files.labels))).round().astype(int):
        data = files.read(int(index))
        try:
            channels = decode(data).reshape(-1, 3).T
        except (MemoryError, RunError):
            raise
        except Exception:  # training says which image is damaged
            continue
        shares.append([np.bincount(pixels, minlength=256) / len(pixels) for pixels in channels])
    if not shares:
        return None
    share = np.mean(shares, axis=0)
    mean = share @ values
    return mean, np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))


def _open(name: str, split: str, data_dir: cache.DataDir) -> ImageFiles:
    folder, folders = cache.dataset_dir(f"{name}/{split}", data_dir), splits_in(cache.dataset_dir(name, data_dir))
    is_prepared = holds_image_records(cache.dataset_dir(f"{name}/{TRAIN}", data_dir))
    try:
        return ImageRecords(folder) if is_prepared else ImageFolder(folders[split])
    except InvalidArgument as error:
        raise InvalidArgument("dataset", name, f"complete; {error.value} must be {error.allowed}") from None


def _moments(name: str, train: ImageFiles, data_dir: cache.DataDir) -> tuple[np.ndarray, np.ndarray]:
    """float32 [3] each: mean and standard deviation of the pixels."""
    path = cache.dataset_dir(f"{name}/{TRAIN}", data_dir) / _MOMENTS
    if name == _IMAGENET:
        found = [255 * np.array(_IMAGENET_MEAN), 255 * np.array(_IMAGENET_STD)]
    elif isinstance(train, ImageRecords) and path.exists():
        found = [np.array(moment) for moment in json.loads(path.read_text(encoding="utf-8"))]
    elif (measured := measure_moments(train)) is not None:
        found = list(measured)
    else:
        raise RunError(f"no training image of {name} can be decoded; the first one is {train.names[0]}")
    mean, std = found
    return mean.astype(np.float32), np.maximum(std, 1e-3).astype(np.float32)
