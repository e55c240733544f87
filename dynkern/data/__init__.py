"""Reading of the images that the networks are measured on. Needs ``pip install dynkern[bench]``."""

from dynkern.data.cifar import batches, load_cifar10, normalize, read_parquet

__all__ = ["batches", "load_cifar10", "normalize", "read_parquet"]
