"""The official files of image data sets: which they are, their MD5s, and how they are read."""

import functools
import gzip
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

# As published for the archives and the files in them; computed from these for the unzipped files of MNIST.
OFFICIAL_MD5 = {
    "cifar10": {
        "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
        "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    },
    "cifar100": {
        "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
        "train.bin": "6172c7755cfe09b2fe270c85cebc1b15",
        "test.bin": "4499cfba6c016c1be1438163640a0898",
    },
    "mnist": {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}

# Of those that come without.
CLASS_NAMES = {
    "fashion_mnist": [
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ],
}

Files = Mapping[str, bytes]


class Contents(NamedTuple):
    """What files hold, not yet checked."""

    splits: list[tuple[np.ndarray, np.ndarray]]  # images and labels to train on, and to test on
    class_names: list[str]  # none: the labels themselves


class Kind(NamedTuple):
    """A way in which a data set comes as several files."""

    name: str
    datasets: tuple[str, ...]  # those whose official files are of this kind
    archive: str | None
    files: tuple[str, ...]
    pickled: bool
    read: Callable[[Files], Contents]  # given exactly these files, in this order


def _pixels(planes: np.ndarray) -> np.ndarray:
    """[n, 3072] in planes of red, green, blue -> [n, 32, 32, 3]."""
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _read_cifar_pickles(files: Files, label_key: bytes, names_key: bytes) -> Contents:
    *batches, meta = (pickle.loads(data, encoding="bytes") for data in files.values())
    splits: list[tuple[np.ndarray, np.ndarray]] = []
    for part in (batches[:-1], batches[-1:]):
        images = np.concatenate([_pixels(batch[b"data"]) for batch in part])
        splits.append((images, np.concatenate([batch[label_key] for batch in part])))
    return Contents(splits, [class_name.decode() for class_name in meta[names_key]])


def _read_cifar_binary(files: Files, num_labels: int) -> Contents:
    """Each record: num_labels bytes of labels, of which the last counts, and the pixels."""
    *batches, names = files.values()
    splits: list[tuple[np.ndarray, np.ndarray]] = []
    for part in (batches[:-1], batches[-1:]):
        records = np.concatenate([np.frombuffer(data, np.uint8).reshape(-1, num_labels + 3072) for data in part])
        splits.append((_pixels(records[:, num_labels:]), records[:, num_labels - 1]))
    return Contents(splits, names.decode().split("\n\n")[0].split())


def _read_mnist(files: Files) -> Contents:
    arrays = []
    for number, (name, data) in enumerate(files.items()):
        data = gzip.decompress(data) if name.endswith(".gz") else data
        num_dimensions = 1 if number % 2 else 3
        header = 4 + 4 * num_dimensions
        if data[:4] != bytes([0, 0, 8, num_dimensions]):
            raise ValueError(f"{name} does not begin as an idx{num_dimensions}-ubyte file")
        shape = np.frombuffer(data[4:header], ">u4").tolist()
        arrays.append(np.frombuffer(data[header:], np.uint8).reshape(shape))
    return Contents([(arrays[0], arrays[1]), (arrays[2], arrays[3])], [])


def _kinds() -> Iterator[Kind]:
    batches = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    read = functools.partial(_read_cifar_pickles, label_key=b"labels", names_key=b"label_names")
    yield Kind("CIFAR-10, python", ("cifar10",), "cifar-10-python.tar.gz", (*batches, "batches.meta"), True, read)
    binary = (*(f"{batch}.bin" for batch in batches), "batches.meta.txt")
    read = functools.partial(_read_cifar_binary, num_labels=1)
    yield Kind("CIFAR-10, binary", ("cifar10",), "cifar-10-binary.tar.gz", binary, False, read)
    read = functools.partial(_read_cifar_pickles, label_key=b"fine_labels", names_key=b"fine_label_names")
    yield Kind("CIFAR-100, python", ("cifar100",), "cifar-100-python.tar.gz", ("train", "test", "meta"), True, read)
    binary = ("train.bin", "test.bin", "fine_label_names.txt")
    read = functools.partial(_read_cifar_binary, num_labels=2)
    yield Kind("CIFAR-100, binary", ("cifar100",), "cifar-100-binary.tar.gz", binary, False, read)
    mnist = [f"{split}-{part}-ubyte" for split in ("train", "t10k") for part in ("images-idx3", "labels-idx1")]
    yield Kind(
        "MNIST, zipped", ("mnist", "fashion_mnist"), None, tuple(f"{file}.gz" for file in mnist), False, _read_mnist
    )
    yield Kind("MNIST, unzipped", ("mnist", "fashion_mnist"), None, tuple(mnist), False, _read_mnist)


KINDS = tuple(_kinds())
