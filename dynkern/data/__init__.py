"""Images to train and measure networks on. Reading them needs ``pip install dynkern[train]``."""

from dynkern.data.augment import Augment
from dynkern.data.cifar import batches, load_cifar10, normalize, read_parquet
from dynkern.data.image_folder import read_image_folder
from dynkern.data.images import Images, load_images
from dynkern.data.python_batches import read_python_batches
from dynkern.data.stream import Stream

__all__ = [
    "Augment",
    "Images",
    "Stream",
    "batches",
    "load_cifar10",
    "load_images",
    "normalize",
    "read_image_folder",
    "read_parquet",
    "read_python_batches",
]
