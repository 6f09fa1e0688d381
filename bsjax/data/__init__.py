"""Sources of examples, data sets, the endless example stream, and augmentation."""

from bsjax.data.augmentation import AUGMENTATIONS
from bsjax.data.dataset import Dataset
from bsjax.data.datasets import DATASETS, load_dataset
from bsjax.data.sources import ArraySource, Source
from bsjax.data.stream import ExampleStream
from bsjax.data.text import TextDataset
from bsjax.data.token_files import read_token_file
from bsjax.data.token_windows import TokenWindows

__all__ = ["AUGMENTATIONS", "DATASETS", "ArraySource", "Dataset", "ExampleStream", "Source", "TextDataset"]
__all__ += ["TokenWindows", "load_dataset", "read_token_file"]
