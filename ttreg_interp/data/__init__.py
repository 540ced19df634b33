"""Images and labels from files."""

from ttreg_interp.data.decode import read_image
from ttreg_interp.data.images import ImageBatch, ImageFolder, ImagePass, Skipped, images
from ttreg_interp.data.labels import Label, Labels, read_labels

__all__ = [
    "ImageBatch",
    "ImageFolder",
    "ImagePass",
    "Label",
    "Labels",
    "Skipped",
    "images",
    "read_image",
    "read_labels",
]
