"""Images with reports: the built-in phantom radiographs, and readers of data on disk."""

from gloria.data.images import fit, load_image, normalize
from gloria.data.pairs import ImageReport, PhantomPairs
from gloria.data.table import ImageReportTable, read_splits

__all__ = [
    "ImageReport",
    "ImageReportTable",
    "PhantomPairs",
    "fit",
    "load_image",
    "normalize",
    "read_splits",
]
