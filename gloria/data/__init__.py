"""Images with reports: the built-in phantom radiographs, and readers of data on disk."""

from gloria.data.chest_prompts import CHEST_PROMPTS
from gloria.data.chexpert import CheXpert, CheXpertPlus
from gloria.data.folder import ImageFolder
from gloria.data.images import fit, load_image, normalize
from gloria.data.leaks import check_splits, find_leaks
from gloria.data.masked import MaskedImage, PhantomMasks
from gloria.data.mimic_cxr import MIMICCXR
from gloria.data.pairs import ImageReport, PhantomPairs
from gloria.data.prompts import Combinations, PromptSet, read_prompts, select_prompts, write_prompts
from gloria.data.protocols import (
    chexpert_5x200,
    chexpert_8x200,
    class_labels,
    draw_exclusive,
    read_queries,
)
from gloria.data.published import published_image, published_text
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
from gloria.data.splits import draw_share, draw_splits, hash_ids, read_ids, write_ids
from gloria.data.table import ImageReportTable, read_splits

__all__ = [
    "CHEST_PROMPTS",
    "CheXpert",
    "CheXpertPlus",
    "Combinations",
    "FINDINGS_AND_IMPRESSION",
    "FULL_REPORT",
    "IMPRESSION",
    "ImageFolder",
    "ImageReport",
    "ImageReportTable",
    "MIMICCXR",
    "MaskedImage",
    "PhantomMasks",
    "PhantomPairs",
    "PromptSet",
    "RANDOM_SENTENCE",
    "RSNA",
    "Radiograph",
    "Radiographs",
    "Record",
    "ReportPolicy",
    "SIIM",
    "check_splits",
    "chexpert_5x200",
    "chexpert_8x200",
    "class_labels",
    "draw_exclusive",
    "draw_share",
    "draw_splits",
    "find_leaks",
    "fit",
    "hash_ids",
    "load_image",
    "normalize",
    "parse_sections",
    "published_image",
    "published_text",
    "random_sentences",
    "read_ids",
    "read_prompts",
    "read_queries",
    "read_splits",
    "select_prompts",
    "split_sentences",
    "write_ids",
    "write_prompts",
]
