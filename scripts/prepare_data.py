"""Prepares a data set once, so that training reads it without TensorFlow and without a network.

    .venv/bin/python scripts/prepare_data.py --dataset=cifar10                                  # TensorFlow Datasets
    .venv/bin/python scripts/prepare_data.py --dataset=cifar10 --source=cifar-10-python.tar.gz  # from files on the disk
    .venv/bin/python scripts/prepare_data.py --dataset=pets --source=pets --class_folders         # folders of JPEGs
    .venv/bin/python scripts/prepare_data.py --dataset=imagenet2012 --source=ILSVRC   # with the official tar files
    .venv/bin/python scripts/prepare_data.py --dataset=shakespeare --source=input.txt           # own text
    .venv/bin/python scripts/prepare_data.py --dataset=openwebtext --source=openwebtext         # train.bin, val.bin
    .venv/bin/python scripts/prepare_data.py --dataset=lm1b --tokens=bytes                      # TensorFlow Datasets

--source takes the files that `bsjax.data.prepare` and `bsjax.data.prepare_text` list, or a folder that TensorFlow
Datasets has prepared. Such a folder, and a data set without --source, need TensorFlow Datasets: scripts/setup_venv.sh
tfds.

With --class_folders, --source has the folders train and validation (or val, or test), each with a folder of JPEGs for
each class; or it is one such split, and --dataset=pets/train or pets/validation names it. The JPEGs are kept as they
are, in ArrayRecord files. The same command continues where it was stopped. It needs array_record:
scripts/setup_venv.sh imagenet. The folder of Tiny ImageNet is read as it is.

ImageNet's official tar files are prepared the same way, without being unpacked. --source is a folder with
ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz; or it is the folder imagenet2012 of
TensorFlow Datasets, prepared with file_format=array_record.
"""

import pathlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging

from bsjax import InvalidArgument
from bsjax.data import (
    DATASETS,
    Dataset,
    ImageFolder,
    ImageRecords,
    TextDataset,
    cache,
    from_tfds,
    prepare,
    prepare_imagenet,
    prepare_text,
    tfds_images,
    write_image_records,
)
from bsjax.data.image_datasets import splits_in, write_moments
from bsjax.data.image_files import ImageFiles, holds_image_records
from bsjax.errors import RunError

_DATASET = flags.DEFINE_string("dataset", None, "Name of the data set.", required=True)
_SOURCE = flags.DEFINE_string("source", None, "Archive, folder, .npz, .txt or .bin file; default, download it.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder to write to; default, $BSJAX_DATA_DIR, else ~/.cache/bsjax.")
_ALLOW = flags.DEFINE_bool("allow_other_checksum", False, "Accept files of another md5, unless they are pickles.")
_CLASS_FOLDERS = flags.DEFINE_bool(
    "class_folders", False, "--source has a folder of images of any sizes for each class."
)
_TOKENS = flags.DEFINE_string("tokens", None, "Tokens of a text: characters, the default, or bytes.")
_TEST_SHARE = flags.DEFINE_float("test_share", None, "Share of a text that is held out at its end; default, 0.1.")
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", None, "Number of different tokens in .bin files; default, one more than the largest."
)
_OF_TEXT: tuple[Any, ...] = (_TOKENS, _TEST_SHARE, _VOCAB_SIZE)
_OFFICIAL = {
    True: "Its md5 is the official one.",
    False: "Its md5 is not the official one, which --allow_other_checksum allows.",
    None: "No official md5 of it is known.",
}


def main() -> None:
    """Reads, writes and describes the data set."""
    name, data_dir = _DATASET.value, _DATA_DIR.value
    if name in DATASETS:
        print(f"{name} comes with bsjax; there is nothing to prepare.")
        return
    if _CLASS_FOLDERS.value:
        prepare_records()
        return
    if _SOURCE.value is not None and prepare_imagenet.is_official(path := pathlib.Path(_SOURCE.value).expanduser()):
        prepare_tars(path)
        return
    if _SOURCE.value is not None and from_tfds.find_folder(path) and (splits := tfds_images.splits_of(name, path)):
        prepare_tfds_images(path, splits)
        return
    if holds_image_records(folder := cache.dataset_dir(name, data_dir)):
        raise InvalidArgument("dataset", name, f"another name: {folder} holds class folders' images")
    if cache.exists(name, data_dir):
        try:
            describe(name)
            print("It is intact; remove that folder to prepare it again.")
            return
        except InvalidArgument as error:
            print(f"--{error}\nPreparing it again.")
    start = time.perf_counter()
    prepared = read()
    if "official" in prepared.source:
        print(_OFFICIAL[prepared.source["official"]])
    print(f"Writing {cache.dataset_dir(name, data_dir)}", flush=True)
    cache.write(prepared.dataset, data_dir, prepared.source)
    describe(name)
    print(f"Prepared in {time.perf_counter() - start:.1f} s.")


def read() -> prepare.Prepared:
    """The data set, from --source or TensorFlow Datasets."""
    name, source = _DATASET.value, _SOURCE.value
    of_text = given_of_text()
    if source is None:
        refuse(of_text, "combined with files of tokens as --source", "vocab_size")
        print(f"Reading {name} with TensorFlow Datasets, which downloads it if it has not done so.", flush=True)
        return from_tfds.download(name, **of_text)
    path = pathlib.Path(source).expanduser()
    print(f"Reading {path}", flush=True)
    if from_tfds.find_folder(path):
        refuse(of_text, f"combined with files of tokens as --source, not {source}", "vocab_size")
        return from_tfds.read_folder(name, path, **of_text)
    if _TOKENS.value or prepare_text.is_text(path):
        return prepare_text.read_text(name, path, **of_text)
    refuse(of_text, f"combined with a text as --source, not {source}")
    return prepare.read_source(name, path, _ALLOW.value)


def given_of_text() -> dict[str, Any]:
    """The flags of texts that are set."""
    return {flag.name: flag.value for flag in _OF_TEXT if flag.value is not None}


def refuse(given: dict[str, Any], allowed: str, *names: str) -> None:
    """Refuses the first of some flags, or of those with these names."""
    for name in names or given:
        if name in given:
            raise InvalidArgument(name, given[name], allowed)


def prepare_records() -> None:
    """Writes the images of class folders to ArrayRecord files, and describes them."""
    refuse(given_of_text(), "combined with a text as --source, not with --class_folders")
    if _SOURCE.value is None:
        raise InvalidArgument("source", None, "a folder with --class_folders")
    path, start = pathlib.Path(_SOURCE.value).expanduser(), time.perf_counter()
    splits = {f"{_DATASET.value}/{split}": folder for split, folder in splits_in(path).items()}
    for name, source in (splits or {_DATASET.value: path}).items():
        folder = records_dir(name)
        try:
            files = ImageFolder(source)
        except InvalidArgument as error:
            raise error.renamed("source") from None
        write_records(files, source, folder)
    print(f"Prepared in {time.perf_counter() - start:.1f} s.")


def prepare_tfds_images(path: pathlib.Path, splits: Sequence[str]) -> None:
    """Writes the images of a folder of TensorFlow Datasets to ArrayRecord files, and describes them."""
    refuse(given_of_text(), "combined with a text as --source, not with images")
    start = time.perf_counter()
    for split, ours in zip(splits, prepare_imagenet.SPLITS, strict=True):
        folder = records_dir(f"{_DATASET.value}/{ours}")
        write_records(tfds_images.TfdsImages(_DATASET.value, path, split), path, folder)
    print(f"Prepared in {time.perf_counter() - start:.1f} s.")


def prepare_tars(path: pathlib.Path) -> None:
    """Writes the images of ImageNet's official tar files to ArrayRecord files, and describes them."""
    refuse(given_of_text(), "combined with a text as --source, not with ImageNet's files")
    start, allow = time.perf_counter(), _ALLOW.value
    folders = {split: records_dir(f"{_DATASET.value}/{split}") for split in prepare_imagenet.SPLITS}
    was_checked = any(map(holds_image_records, folders.values()))  # before the first image was written
    for name in prepare_imagenet.check_files(path, allow or was_checked):
        print(f"Checking the md5 of {name}, {(path / name).stat().st_size / 1e9:,.1f} GB", flush=True)
    print(f"Looking where the images are in {path}", flush=True)
    splits = prepare_imagenet.read_tars(path, allow)
    check_space(folders, splits)
    for split, files in splits.items():
        write_records(files, path / prepare_imagenet.SPLITS[split], folders[split])
    print(f"Prepared in {time.perf_counter() - start:.1f} s.")


def records_dir(name: str) -> pathlib.Path:
    """The folder of images of many sizes, which must not hold another data set."""
    folder = cache.dataset_dir(name, _DATA_DIR.value)
    if (folder / "dataset.json").exists():
        raise InvalidArgument("dataset", _DATASET.value, f"another name: {folder} holds images of one size")
    return folder


def check_space(folders: dict[str, pathlib.Path], splits: dict[str, prepare_imagenet.TarImages]) -> None:
    """Refuses to begin what the disk cannot hold."""
    written = sum(path.stat().st_size for folder in folders.values() for path in folder.glob("*.array_record"))
    needed = sum(files.nbytes for files in splits.values()) - written
    parent = cache.resolve_data_dir(_DATA_DIR.value)
    existing = next(folder for folder in (parent, *parent.absolute().parents) if folder.exists())
    if needed > (free := shutil.disk_usage(existing).free):
        raise RunError(f"{parent} needs {needed / 1e9:,.1f} GB more, and its disk has {free / 1e9:,.1f} GB free")


def write_records(files: ImageFiles, path: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes images to a folder of ArrayRecord files, and describes them."""
    total = len(files.names)
    print(f"{total:,} images of {len(files.class_names):,} classes in {path}\nWriting {folder}", flush=True)
    write_image_records(files, folder, report=lambda count: print(f"  {count:,} of {total:,} images", flush=True))
    records = ImageRecords(folder)
    if folder.name.endswith("-train"):
        write_moments(records, folder)
    print(f"It holds {records.fingerprint}: their number and CRC-32.")


def describe(name: str) -> None:
    """Verifies a prepared data set, and prints what it holds."""
    dataset = cache.read(name, _DATA_DIR.value)
    print(f"{name} in {cache.dataset_dir(name, _DATA_DIR.value)}")
    for line in describe_text(dataset) if isinstance(dataset, TextDataset) else describe_images(dataset):
        print(f"  {line}", flush=True)


def describe_images(dataset: Dataset) -> Iterator[str]:
    """Sizes, classes and moments."""
    height, width, channels = dataset.train.gather(np.arange(1))["image"].shape[1:]
    yield f"{len(dataset.train):,} images to train on, {len(dataset.test):,} to test on"
    yield f"height {height}, width {width}, channels {channels}"
    more = ", ..." if dataset.num_classes > 10 else ""
    yield f"{dataset.num_classes} classes: {', '.join(dataset.class_names[:10])}{more}"
    for what, values in (("mean", dataset.mean), ("standard deviation", dataset.std)):
        yield f"{what} by channel, of 1: {' '.join(f'{value / 255:.6f}' for value in values)}"


def describe_text(dataset: TextDataset) -> Iterator[str]:
    """Sizes, and the vocabulary."""
    yield f"{len(dataset.train_tokens):,} tokens to train on, {len(dataset.test_tokens):,} to test on"
    characters = f": {''.join(dataset.vocabulary)[:80]!r}" if dataset.vocabulary else ""
    yield f"{dataset.vocab_size:,} different tokens{characters}"


def run(argv: list[str]) -> None:
    """Runs main; each error is one line, and bad input exits with 2."""
    # `experiments.harness.cli` would add the flags of a training run.
    try:
        if len(argv) > 1:
            raise InvalidArgument("argument", argv[1], "a flag, such as --dataset=cifar10")
        logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets logs every step at INFO
        main()
        return
    except InvalidArgument as error:
        message, code = f"--{error}", 2
    except (OSError, RunError) as error:  # such as a folder that may not be read
        message, code = str(error), 1
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    app.run(run)
