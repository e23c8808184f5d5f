"""Phantom radiographs: the built-in data, drawn by numpy, no files needed.

They show that training works and where words attend. They are no evidence about real radiographs,
nor for or against any paper.
"""

from gloria.data.phantom.case import FINDINGS, RETRIEVAL_CLASSES, Finding
from gloria.data.phantom.dataset import SPLITS, PhantomDataset, PhantomItem, phantom_item
from gloria.data.phantom.files import write_phantoms
from gloria.data.phantom.report import Mention, Sentence, phantom_prompts, split_words

__all__ = [
    "FINDINGS",
    "RETRIEVAL_CLASSES",
    "SPLITS",
    "Finding",
    "Mention",
    "PhantomDataset",
    "PhantomItem",
    "Sentence",
    "phantom_item",
    "phantom_prompts",
    "split_words",
    "write_phantoms",
]
