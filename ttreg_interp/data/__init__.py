"""Images and labels, from files and datasets."""

from ttreg_interp.data.decode import read_image
from ttreg_interp.data.images import ImageFolder, images
from ttreg_interp.data.labels import Label, Labels, read_labels
from ttreg_interp.data.passes import ImageBatch, ImagePass, ImageSet, Skipped

__all__ = [
    "ImageBatch",
    "ImageFolder",
    "ImagePass",
    "ImageSet",
    "Label",
    "Labels",
    "Skipped",
    "images",
    "read_image",
    "read_labels",
]
