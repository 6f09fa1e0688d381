"""Sources of examples, data sets, the endless example stream, and augmentation."""

from bsjax.data.augmentation import AUGMENTATIONS
from bsjax.data.dataset import Dataset
from bsjax.data.datasets import DATASETS, load_dataset
from bsjax.data.sources import ArraySource, Source
from bsjax.data.stream import ExampleStream

__all__ = ["AUGMENTATIONS", "DATASETS", "ArraySource", "Dataset", "ExampleStream", "Source", "load_dataset"]
