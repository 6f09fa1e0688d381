"""Prepares a data set once, so that training reads it without TensorFlow and without a network.

    python scripts/prepare_data.py --dataset=cifar10                                   # with TensorFlow Datasets
    python scripts/prepare_data.py --dataset=cifar10 --source=cifar-10-python.tar.gz   # from what is on disk

--source takes what `bsjax.data.prepare` lists, or a folder that TensorFlow Datasets has prepared. For such a one, and
without --source, the extra `tfds` is needed: pip install "bsjax[tfds]".
"""

import pathlib
import time

from absl import flags

from bsjax import InvalidArgument
from bsjax.data import DATASETS, cache, from_tfds, prepare
from experiments import cli

_DATASET = flags.DEFINE_string("dataset", None, "Name of the data set.", required=True)
_SOURCE = flags.DEFINE_string("source", None, "Archive, folder or .npz file; default, download it.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder to write to; default, $BSJAX_DATA_DIR, else ~/.cache/bsjax.")
_ALLOW = flags.DEFINE_bool(
    "allow_other_checksum", False, "Take files whose md5 is not the official one; never pickles."
)
_OFFICIAL = {
    True: "Its md5 is the official one.",
    False: "Its md5 is not the official one, which --allow_other_checksum allows.",
    None: "No official md5 of it is known.",
}


def main() -> None:
    """Reads, writes, and says what is there."""
    name, data_dir = _DATASET.value, _DATA_DIR.value
    if name in DATASETS:
        print(f"{name} comes with bsjax; there is nothing to prepare.")
        return
    if cache.exists(name, data_dir):
        try:
            describe(name)
            print("It is there and intact; remove that folder to make it again.")
            return
        except InvalidArgument as error:
            print(f"--{error}\nMaking it again.")
    start = time.perf_counter()
    prepared = read()
    if "official" in prepared.source:
        print(_OFFICIAL[prepared.source["official"]])
    print(f"Writing {cache.dataset_dir(name, data_dir)}", flush=True)
    cache.write(prepared.dataset, data_dir, prepared.source)
    describe(name)
    print(f"Prepared in {time.perf_counter() - start:.1f} s.")


def read() -> prepare.Prepared:
    """The data set, from where the flags say."""
    name, source = _DATASET.value, _SOURCE.value
    if source is None:
        print(f"Reading {name} with TensorFlow Datasets; it is downloaded and prepared first if need be.", flush=True)
        return from_tfds.download(name)
    path = pathlib.Path(source).expanduser()
    print(f"Reading {path}", flush=True)
    if from_tfds.find_folder(path):
        return from_tfds.read_folder(name, path)
    return prepare.read_source(name, path, _ALLOW.value)


def describe(name: str) -> None:
    """Prints what a prepared data set is, having verified it."""
    dataset = cache.read(name, _DATA_DIR.value)
    height, width, channels = dataset.train.images.shape[1:]
    print(f"{name} in {cache.dataset_dir(name, _DATA_DIR.value)}")
    print(f"  {len(dataset.train.labels):,} images to train on, {len(dataset.test.labels):,} to test on")
    print(f"  height {height}, width {width}, channels {channels}")
    more = ", ..." if dataset.num_classes > 10 else ""
    print(f"  {dataset.num_classes} classes: {', '.join(dataset.class_names[:10])}{more}")
    for what, values in (("mean", dataset.mean), ("standard deviation", dataset.std)):
        print(f"  {what} by channel, of 1: {' '.join(f'{value / 255:.6f}' for value in values)}", flush=True)


if __name__ == "__main__":
    cli.run(main)
