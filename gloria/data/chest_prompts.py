"""Our own prompts for frontal chest radiographs, by the names of CheXpert's classes.

Written as reports put a finding: how much, what, where. A severity and a place stand only with
what can have them: an enlarged heart is on no side, a tension pneumothorax is not small, and
findings of both lungs are in no single lobe.
"""

from __future__ import annotations

from collections.abc import Mapping

from gloria.data.prompts import Combinations, PromptSet

_BASES = ("at the left lung base", "at the right lung base", "at both lung bases")
_SIDES = ("on the left", "on the right")
_LOBES = (
    "left upper lobe",
    "lingula",
    "left lower lobe",
    "right upper lobe",
    "right middle lobe",
    "right lower lobe",
)
_IN_LOBES = tuple(f"in the {lobe}" for lobe in _LOBES)
_OF_LOBES = tuple(f"of the {lobe}" for lobe in _LOBES if lobe != "lingula")

CHEST_PROMPTS: Mapping[str, PromptSet] = {
    "Atelectasis": PromptSet(
        [
            Combinations(
                severity=("", "minimal", "mild", "moderate"),
                subtype=("atelectasis",),
                location=("", *_BASES, *_IN_LOBES),
            ),
            Combinations(
                severity=("", "minimal", "mild"),
                subtype=("subsegmental atelectasis", "linear atelectasis", "platelike atelectasis"),
                location=("", *_BASES),
            ),
            Combinations(
                severity=("partial", "complete"), subtype=("collapse",), location=_OF_LOBES
            ),
        ],
        [
            "no atelectasis",
            "no evidence of atelectasis",
            "no focal atelectasis",
            "no lobar collapse",
            "the lungs are well expanded",
        ],
    ),
    "Cardiomegaly": PromptSet(
        [
            Combinations(
                severity=("", "mild", "moderate", "severe"),
                subtype=(
                    "cardiomegaly",
                    "cardiac enlargement",
                    "enlargement of the heart",
                    "enlargement of the cardiac silhouette",
                ),
            ),
            Combinations(
                severity=("", "mildly", "moderately", "markedly"),
                subtype=("enlarged heart", "enlarged cardiac silhouette"),
            ),
        ],
        [
            "no cardiomegaly",
            "no evidence of cardiomegaly",
            "the heart is not enlarged",
            "the heart size is normal",
            "normal cardiac silhouette",
        ],
    ),
    "Consolidation": PromptSet(
        [
            Combinations(
                severity=("", "patchy", "dense"),
                subtype=("consolidation", "airspace consolidation"),
                location=("", *_IN_LOBES),
            ),
            Combinations(subtype=("focal consolidation",), location=("", *_IN_LOBES)),
            Combinations(
                severity=("", "patchy", "extensive"),
                subtype=("bilateral consolidation", "multifocal consolidation"),
            ),
        ],
        [
            "no consolidation",
            "no evidence of consolidation",
            "no focal consolidation",
            "no airspace consolidation",
            "the lungs are clear",
        ],
    ),
    "Edema": PromptSet(
        [
            Combinations(
                severity=("", "mild", "moderate", "severe"),
                subtype=("pulmonary edema",),
                location=("", "in both lungs", "in a perihilar distribution"),
            ),
            Combinations(
                severity=("", "mild", "moderate"),
                subtype=("interstitial edema", "pulmonary vascular congestion"),
            ),
            Combinations(
                severity=("", "moderate", "severe"),
                subtype=("alveolar edema",),
                location=("", "in both lungs", "in a perihilar distribution"),
            ),
        ],
        [
            "no pulmonary edema",
            "no evidence of pulmonary edema",
            "no interstitial edema",
            "no pulmonary vascular congestion",
            "normal pulmonary vasculature",
        ],
    ),
    "Pleural Effusion": PromptSet(
        [
            Combinations(
                severity=("", "trace", "small", "moderate", "large"),
                subtype=("pleural effusion",),
                location=("", *_SIDES),
            ),
            Combinations(
                severity=("", "trace", "small", "moderate", "large"),
                subtype=("bilateral pleural effusions",),
            ),
            Combinations(
                severity=("", "small", "moderate", "large"),
                subtype=("layering pleural effusion", "loculated pleural effusion"),
                location=_SIDES,
            ),
            Combinations(
                severity=("", "small", "moderate"),
                subtype=("subpulmonic effusion",),
                location=_SIDES,
            ),
        ],
        [
            "no pleural effusion",
            "no evidence of pleural effusion",
            "no pleural fluid",
            "no layering effusion",
            "the costophrenic angles are sharp",
        ],
    ),
    "Pneumonia": PromptSet(
        [
            Combinations(
                severity=("", "early", "extensive"),
                subtype=("pneumonia",),
                location=("", *_IN_LOBES),
            ),
            Combinations(
                subtype=("consolidation consistent with pneumonia",), location=("", *_IN_LOBES)
            ),
            Combinations(subtype=("lobar pneumonia",), location=("", *_OF_LOBES)),
            Combinations(
                severity=("", "extensive"),
                subtype=("bilateral pneumonia", "multifocal pneumonia", "bronchopneumonia"),
            ),
            Combinations(subtype=("aspiration pneumonia",), location=("", *_BASES)),
        ],
        [
            "no pneumonia",
            "no evidence of pneumonia",
            "no focal consolidation to suggest pneumonia",
            "no acute infectious process",
            "the lungs are clear",
        ],
    ),
    "Pneumothorax": PromptSet(
        [
            Combinations(
                severity=("", "tiny", "small", "moderate", "large"),
                subtype=("pneumothorax",),
                location=("", *_SIDES),
            ),
            Combinations(
                severity=("", "tiny", "small"), subtype=("apical pneumothorax",), location=_SIDES
            ),
            Combinations(
                severity=("", "small", "moderate"),
                subtype=("basilar pneumothorax", "loculated pneumothorax"),
                location=_SIDES,
            ),
            Combinations(
                severity=("", "large"), subtype=("tension pneumothorax",), location=_SIDES
            ),
            Combinations(severity=("", "small"), subtype=("bilateral pneumothoraces",)),
        ],
        [
            "no pneumothorax",
            "no evidence of pneumothorax",
            "no visible pneumothorax",
            "no apical pneumothorax",
            "no pneumothorax on either side",
        ],
    ),
}
"""Class to its prompts, severity x subtype x location; the competition's five classes first."""
