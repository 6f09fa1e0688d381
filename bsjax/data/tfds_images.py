"""Images of many sizes in a folder that TensorFlow Datasets has prepared as ArrayRecord files, such as imagenet2012.

Reading them needs TensorFlow Datasets, the extra `tfds`, and no TensorFlow. Nothing that trains imports it:
`scripts/prepare_data.py` copies the encoded images, as they are, to the records that training reads.
"""

import pathlib
from typing import Any

import numpy as np
import tqdm

from bsjax.data.from_tfds import find_folder, read_errors
from bsjax.data.image_files import fingerprint_of
from bsjax.errors import InvalidArgument


class TfdsImages:
    """The encoded images of a split: an `ImageFiles`.

    Labels and names are read at first, from all the records, so that copying the images reads them twice.

    Args:
      name: of the data set, for errors.
      path: the folder of TensorFlow Datasets, or the one above.
      split: such as "train".

    Raises:
      InvalidArgument: the folder is damaged, or its files are no ArrayRecords.
    """

    def __init__(self, name: str, path: pathlib.Path, split: str):
        with read_errors(name, "source", str(path), "an intact folder of TensorFlow Datasets"):
            import tensorflow_datasets as tfds

            builder = tfds.builder_from_directory(find_folder(path))
            keys = builder.info.supervised_keys or ("image", "label")
            self._image, label = str(keys[0]), keys[1]
            if (form := builder.info.file_format.value) != "array_record":
                allowed = f"a folder that TensorFlow Datasets has prepared with file_format=array_record, not {form}"
                raise InvalidArgument("source", str(path), allowed)
            skip = {self._image: tfds.decode.SkipDecoding()}
            self._records = builder.as_data_source(split, decoders=skip)
            self.class_names = tuple(builder.info.features[label].names)
            self.labels, self.names = np.empty(len(self._records), np.int32), list[str]()
            for index, example in enumerate(tqdm.tqdm(self._records, f"reading the labels of {split}", disable=None)):
                self.labels[index] = example[label]
                self.names.append(_name_of(example, split, index))

    @property
    def fingerprint(self) -> str:
        """Number and CRC-32 of all names, labels and images, which are read for it."""
        return fingerprint_of(self)

    def read(self, index: int) -> bytes:
        """The bytes of an image."""
        return self._records[index][self._image]


def splits_of(name: str, path: pathlib.Path) -> tuple[str, ...]:
    """The splits to train on and to test on, if the folder holds images of many sizes; else ()."""
    with read_errors(name, "source", str(path), "an intact folder of TensorFlow Datasets"):
        import tensorflow_datasets as tfds

        info = tfds.builder_from_directory(find_folder(path)).info
        features: dict[str, Any] = dict(info.features.items())
        keys = info.supervised_keys or ("image", "label")
        image, label = (features.get(key) for key in keys[:2])
        is_image, has_class = isinstance(image, tfds.features.Image), isinstance(label, tfds.features.ClassLabel)
        if not (is_image and has_class) or None not in features[keys[0]].shape:
            return ()
        found = [split for split in ("train", "validation", "test") if split in info.splits][:2]
        return tuple(found) if found[:1] == ["train"] and len(found) == 2 else ()


def _name_of(example: Any, split: str, index: int) -> str:
    """The file's name, which imagenet2012 has, or one made of the number."""
    name = example.get("file_name", f"{split}-{index:08d}")
    return name.decode() if isinstance(name, bytes) else str(name)
