"""What a phantom radiograph shows: which findings, how severe, where.

The film draws a case and the report tells it; neither knows the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FINDINGS = (
    "atelectasis",
    "cardiomegaly",
    "consolidation",
    "edema",
    "pleural effusion",
    "pneumothorax",
)
"""Every finding, in the order of all label, mask and side arrays."""

RETRIEVAL_CLASSES = FINDINGS[:5]
"""The five classes of the 5xN sets: those of CheXpert 5x200."""

_NUMBER_OF_FINDINGS = (0.22, 0.40, 0.27, 0.11)
_SEVERITY = (0.40, 0.35, 0.25)
_CARDIAC = frozenset({"cardiomegaly", "edema", "pleural effusion"})
_CARDIAC_TOGETHER = 2.5  # how much likelier a second one of the three is, given a first
_SIDES = {
    "atelectasis": (("left", "right", "bilateral"), (0.38, 0.38, 0.24)),
    "cardiomegaly": ((None,), (1.0,)),
    "consolidation": (("left", "right"), (0.5, 0.5)),
    "edema": (("bilateral",), (1.0,)),
    "pleural effusion": (("left", "right", "bilateral"), (0.38, 0.38, 0.24)),
    "pneumothorax": (("left", "right"), (0.5, 0.5)),
}


class Finding(NamedTuple):
    """One finding of a case.

    Attributes:
        name: one of :data:`FINDINGS`.
        severity: 1 mild, 2 moderate, 3 severe.
        side: the *patient's* ``"left"``, ``"right"`` or ``"bilateral"``; None for the heart.
        zone: ``"upper"``, ``"mid"`` or ``"lower"`` for a consolidation, else None.
    """

    name: str
    severity: int
    side: str | None
    zone: str | None = None


def sample_case(rng: np.random.Generator) -> tuple[Finding, ...]:
    """Draw none to three different findings, in the order of :data:`FINDINGS`.

    Cardiomegaly, edema and effusion come together more often than chance, as they do in patients.
    """
    names: list[str] = []
    for _ in range(rng.choice(len(_NUMBER_OF_FINDINGS), p=_NUMBER_OF_FINDINGS)):
        left_over = [name for name in FINDINGS if name not in names]
        likely = _CARDIAC if _CARDIAC.intersection(names) else frozenset()
        weights = np.array([_CARDIAC_TOGETHER if name in likely else 1.0 for name in left_over])
        names.append(str(rng.choice(left_over, p=weights / weights.sum())))
    return sample_findings(rng, names)


def sample_findings(rng: np.random.Generator, names: Sequence[str]) -> tuple[Finding, ...]:
    """Draw a case with these findings and no other."""
    findings = {}
    for name in names:
        sides, chances = _SIDES[name]
        severity = int(rng.choice(3, p=_SEVERITY)) + 1
        findings[name] = Finding(name, severity, sides[rng.choice(len(sides), p=chances)])
    if "consolidation" in findings:
        zone = _sample_zone(rng, findings)
        findings["consolidation"] = findings["consolidation"]._replace(zone=zone)
    return tuple(findings[name] for name in FINDINGS if name in findings)


def _sample_zone(rng: np.random.Generator, findings: dict[str, Finding]) -> str:
    """A zone of the lung that no fluid and no air on the same side takes away."""
    side = findings["consolidation"].side
    taken = [("pleural effusion", "lower"), ("pneumothorax", "upper")]
    hidden = [
        zone
        for name, zone in taken
        if name in findings and findings[name].side in (side, "bilateral")
    ]
    return str(rng.choice([zone for zone in ("upper", "mid", "lower") if zone not in hidden]))
