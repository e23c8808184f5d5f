"""Images with reports: the built-in phantom radiographs, and readers of data on disk."""

from gloria.data.chexpert import CheXpert, CheXpertPlus
from gloria.data.images import fit, load_image, normalize
from gloria.data.mimic_cxr import MIMICCXR
from gloria.data.pairs import ImageReport, PhantomPairs
from gloria.data.radiographs import Radiograph, Radiographs, Record
from gloria.data.reports import (
    FINDINGS_AND_IMPRESSION,
    FULL_REPORT,
    IMPRESSION,
    RANDOM_SENTENCE,
    ReportPolicy,
    parse_sections,
    random_sentences,
    split_sentences,
)
from gloria.data.rsna import RSNA
from gloria.data.siim import SIIM
from gloria.data.table import ImageReportTable, read_splits

__all__ = [
    "CheXpert",
    "CheXpertPlus",
    "MIMICCXR",
    "RSNA",
    "SIIM",
    "FINDINGS_AND_IMPRESSION",
    "FULL_REPORT",
    "IMPRESSION",
    "ImageReport",
    "ImageReportTable",
    "PhantomPairs",
    "RANDOM_SENTENCE",
    "Radiograph",
    "Radiographs",
    "Record",
    "ReportPolicy",
    "fit",
    "load_image",
    "normalize",
    "parse_sections",
    "random_sentences",
    "read_splits",
    "split_sentences",
]
