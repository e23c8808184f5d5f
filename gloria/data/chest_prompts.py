"""Our own prompts for frontal chest radiographs, by the names of CheXpert's classes.

Written as reports put a finding: how much, what, where. A severity and a place stand only with
what can have them: an enlarged heart is on no side, a tension pneumothorax is not small, and
findings of both lungs are in no single lobe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gloria.data.prompts import Combinations, PromptSet

_BASES = ("at the left lung base", "at the right lung base", "at both lung bases")
_SIDES = ("on the left", "on the right")
_LUNGS = ("in both lungs", "in a perihilar distribution")
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


def _each(severity: str, subtype: str, location: Sequence[str] = ("",)) -> Combinations:
    """Each severity ("|mild": none, or mild) and subtype, separated by |, with each location."""
    return Combinations(severity=severity.split("|"), subtype=subtype.split("|"), location=location)


CHEST_PROMPTS: Mapping[str, PromptSet] = {
    "Atelectasis": PromptSet(
        [
            _each("|minimal|mild|moderate", "atelectasis", ("", *_BASES, *_IN_LOBES)),
            _each(
                "|minimal|mild",
                "subsegmental atelectasis|linear atelectasis|platelike atelectasis",
                ("", *_BASES),
            ),
            _each("partial|complete", "collapse", _OF_LOBES),
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
            _each(
                "|mild|moderate|severe",
                "cardiomegaly|cardiac enlargement|enlargement of the heart"
                "|enlargement of the cardiac silhouette",
            ),
            _each("|mildly|moderately|markedly", "enlarged heart|enlarged cardiac silhouette"),
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
            _each("|patchy|dense", "consolidation|airspace consolidation", ("", *_IN_LOBES)),
            _each("", "focal consolidation", ("", *_IN_LOBES)),
            _each("|patchy|extensive", "bilateral consolidation|multifocal consolidation"),
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
            _each("|mild|moderate|severe", "pulmonary edema", ("", *_LUNGS)),
            _each("|mild|moderate", "interstitial edema|pulmonary vascular congestion"),
            _each("|moderate|severe", "alveolar edema", ("", *_LUNGS)),
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
            _each("|trace|small|moderate|large", "pleural effusion", ("", *_SIDES)),
            _each("|trace|small|moderate|large", "bilateral pleural effusions"),
            _each(
                "|small|moderate|large",
                "layering pleural effusion|loculated pleural effusion",
                _SIDES,
            ),
            _each("|small|moderate", "subpulmonic effusion", _SIDES),
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
            _each("|early|extensive", "pneumonia", ("", *_IN_LOBES)),
            _each("", "consolidation consistent with pneumonia", ("", *_IN_LOBES)),
            _each("", "lobar pneumonia", ("", *_OF_LOBES)),
            _each("|extensive", "bilateral pneumonia|multifocal pneumonia|bronchopneumonia"),
            _each("", "aspiration pneumonia", ("", *_BASES)),
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
            _each("|tiny|small|moderate|large", "pneumothorax", ("", *_SIDES)),
            _each("|tiny|small", "apical pneumothorax", _SIDES),
            _each("|small|moderate", "basilar pneumothorax|loculated pneumothorax", _SIDES),
            _each("|large", "tension pneumothorax", _SIDES),
            _each("|small", "bilateral pneumothoraces"),
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
