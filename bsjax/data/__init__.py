"""Sources of examples, data sets, the endless example stream, and augmentation."""

from bsjax.data.augmentation import AUGMENTATIONS
from bsjax.data.dataset import Dataset
from bsjax.data.datasets import DATASETS, load_dataset
from bsjax.data.image_files import ImageFolder, ImageRecords, write_image_records
from bsjax.data.image_source import ImageSource
from bsjax.data.sources import ArraySource, Source
from bsjax.data.stream import ExampleStream

__all__ = ["AUGMENTATIONS", "DATASETS", "ArraySource", "Dataset", "ExampleStream", "ImageFolder", "ImageRecords"]
__all__ += ["ImageSource", "Source", "load_dataset", "write_image_records"]
