"""Sources of examples, data sets, the endless example stream, and augmentation."""

from bsjax.data.augmentation import AUGMENTATIONS
from bsjax.data.dataset import Dataset
from bsjax.data.datasets import DATASETS, load_dataset
from bsjax.data.image_datasets import has_images, load_images
from bsjax.data.image_files import ImageFolder, ImageRecords, write_image_records
from bsjax.data.image_source import ImageSource
from bsjax.data.joined_tokens import JoinedTokens
from bsjax.data.signals import create_signals
from bsjax.data.sources import ArraySource, Source
from bsjax.data.stream import ExampleStream
from bsjax.data.text import TextDataset
from bsjax.data.token_files import read_token_file
from bsjax.data.token_windows import TokenWindows

__all__ = ["AUGMENTATIONS", "DATASETS", "ArraySource", "Dataset", "ExampleStream", "ImageFolder", "ImageRecords"]
__all__ += ["ImageSource", "JoinedTokens", "Source", "TextDataset", "TokenWindows", "load_dataset", "read_token_file"]
__all__ += ["create_signals", "has_images", "load_images", "write_image_records"]
