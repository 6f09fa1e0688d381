"""Data sets, the endless example stream, and augmentation."""

from bsjax.data.augmentation import AUGMENTATIONS
from bsjax.data.dataset import Dataset, Split
from bsjax.data.datasets import DATASETS, load_dataset
from bsjax.data.stream import ExampleStream

__all__ = ["AUGMENTATIONS", "DATASETS", "Dataset", "ExampleStream", "Split", "load_dataset"]
