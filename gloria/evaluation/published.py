"""What GLoRIA's paper reports, to stand beside what is measured here.

These figures are of other data: CheXpert, RSNA and SIIM, with the authors' splits, which were never
published in full. They say what the layout of a table is and what was reported; nothing measured on
other images can be compared with them.

Source: Huang et al., GLoRIA: A Multimodal Global-Local Representation Learning Framework for
Label-efficient Medical Image Recognition, ICCV 2021, section 4.
"""

from __future__ import annotations

from typing import NamedTuple


class PublishedTable(NamedTuple):
    """One published table: data set, what was done with it, columns, and figures as printed."""

    data: str
    protocol: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]
    decimals: int


SOURCE = "Huang et al., GLoRIA, ICCV 2021, section 4"

ZERO_SHOT_COLUMNS = ("Acc", "Sens", "Spec", "PPV", "NPV", "F1")
LABEL_COLUMNS = ("1%", "10%", "100%")
PERCENT = ("retrieval", "classification")
"""The tasks whose figures are printed in percent; the others', as shares of 1."""
DATA_SETS = ("CheXpert", "RSNA", "SIIM")
"""How the names of the data sets begin."""

PUBLISHED: dict[str, tuple[PublishedTable, ...]] = {
    "retrieval": (
        PublishedTable(
            "CheXpert 5x200",
            "an image asks for reports of its class",
            ("Prec@5", "Prec@10", "Prec@100"),
            {
                "DSVE": (40.64, 32.77, 24.74),
                "VSE++": (44.28, 36.81, 26.89),
                "ConVIRT": (66.98, 63.06, 49.03),
                "GLoRIA, global only": (67.02, 64.68, 49.55),
                "GLoRIA, local only": (68.22, 64.58, 48.17),
                "GLoRIA": (69.24, 67.22, 53.78),
            },
            2,
        ),
    ),
    "zero-shot": (
        PublishedTable(
            "CheXpert 5x200",
            "five classes by prompts; below, supervised with 1 % of the labels",
            ZERO_SHOT_COLUMNS,
            {
                "GLoRIA, zero-shot": (0.61, 0.70, 0.91, 0.65, 0.92, 0.67),
                "GLoRIA, supervised at 1%": (0.47, 0.68, 0.85, 0.53, 0.91, 0.59),
            },
            2,
        ),
        PublishedTable(
            "RSNA pneumonia",
            "pneumonia or not by prompts; below, supervised with 1 % of the labels",
            ZERO_SHOT_COLUMNS,
            {
                "GLoRIA, zero-shot": (0.70, 0.89, 0.65, 0.43, 0.95, 0.58),
                "GLoRIA, supervised at 1%": (0.72, 0.82, 0.69, 0.44, 0.93, 0.57),
            },
            2,
        ),
    ),
    "classification": (
        PublishedTable(
            "CheXpert",
            "linear classifier on the frozen image encoder, mean AUROC of five classes",
            LABEL_COLUMNS,
            {
                "Random": (56.1, 62.6, 65.7),
                "ImageNet": (74.4, 79.1, 81.4),
                "DSVE": (50.1, 51.0, 51.5),
                "VSE++": (50.3, 51.2, 52.4),
                "ConVIRT": (85.9, 86.8, 87.3),
                "GLoRIA": (86.6, 87.8, 88.1),
            },
            1,
        ),
        PublishedTable(
            "RSNA pneumonia",
            "linear classifier on the frozen image encoder, AUROC",
            LABEL_COLUMNS,
            {
                "Random": (58.9, 69.4, 74.1),
                "ImageNet": (74.9, 74.5, 76.3),
                "DSVE": (49.7, 52.1, 57.8),
                "VSE++": (49.4, 57.2, 67.9),
                "ConVIRT": (77.4, 80.1, 81.3),
                "GLoRIA": (86.1, 88.0, 88.6),
            },
            1,
        ),
    ),
    "segmentation": (
        PublishedTable(
            "SIIM pneumothorax",
            "U-Net on the image encoder, Dice",
            LABEL_COLUMNS,
            {
                "Random": (0.090, 0.286, 0.543),
                "ImageNet": (0.102, 0.355, 0.635),
                "ConVIRT": (0.250, 0.432, 0.599),
                "GLoRIA": (0.358, 0.469, 0.634),
            },
            3,
        ),
    ),
}
"""Task: its published tables, one for each data set."""
