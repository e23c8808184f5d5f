"""Cases follow the frequencies they are drawn from."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from gloria.data.phantom.case import (
    FINDINGS,
    RETRIEVAL_CLASSES,
    Finding,
    sample_case,
    sample_findings,
)

CASES = [sample_case(np.random.default_rng([7, index])) for index in range(6000)]
TOLERANCE = 0.025  # four standard errors of a share of 6,000


def test_number_of_findings_follows_the_design() -> None:
    shares = Counter(len(case) for case in CASES)
    for number, expected in enumerate((0.22, 0.40, 0.27, 0.11)):
        assert shares[number] / len(CASES) == pytest.approx(expected, abs=TOLERANCE)
    assert set(shares) == {0, 1, 2, 3}


def test_severity_follows_the_design() -> None:
    shares = Counter(finding.severity for case in CASES for finding in case)
    for severity, expected in ((1, 0.40), (2, 0.35), (3, 0.25)):
        assert shares[severity] / shares.total() == pytest.approx(expected, abs=TOLERANCE)


def test_findings_are_different_in_order_and_none_is_rare() -> None:
    for case in CASES:
        places = [FINDINGS.index(finding.name) for finding in case]
        assert places == sorted(set(places))
    prevalence = Counter(finding.name for case in CASES for finding in case)
    assert set(prevalence) == set(FINDINGS)
    assert all(0.15 < count / len(CASES) < 0.30 for count in prevalence.values())


def test_heart_edema_and_effusion_come_together_more_often_than_chance() -> None:
    pairs = [{finding.name for finding in case} for case in CASES if len(case) == 2]
    together = np.mean([pair < {"cardiomegaly", "edema", "pleural effusion"} for pair in pairs])
    # 3 of the 15 pairs are of this kind: 0.2 by chance. First one of the three, then another:
    assert together == pytest.approx(3 / 6 * (2 * 2.5) / (2 * 2.5 + 3), abs=0.05)


def test_sides_fit_the_finding_and_are_balanced() -> None:
    sides = {
        name: Counter(f.side for case in CASES for f in case if f.name == name) for name in FINDINGS
    }
    assert set(sides["cardiomegaly"]) == {None}
    assert set(sides["edema"]) == {"bilateral"}
    assert set(sides["consolidation"]) == set(sides["pneumothorax"]) == {"left", "right"}
    for name in ("atelectasis", "pleural effusion"):
        assert set(sides[name]) == {"left", "right", "bilateral"}
    for name in ("atelectasis", "pleural effusion", "consolidation", "pneumothorax"):
        assert sides[name]["left"] / sides[name]["right"] == pytest.approx(1, abs=0.2)


def test_only_consolidations_have_a_zone_and_nothing_hides_it() -> None:
    zones = Counter()
    for case in CASES:
        by_name = {finding.name: finding for finding in case}
        assert all((f.zone is None) == (f.name != "consolidation") for f in case)
        blob = by_name.get("consolidation")
        if blob is None:
            continue
        zones[blob.zone] += 1
        for name, taken in (("pleural effusion", "lower"), ("pneumothorax", "upper")):
            if name in by_name and by_name[name].side in (blob.side, "bilateral"):
                assert blob.zone != taken
    assert set(zones) == {"upper", "mid", "lower"}


@pytest.mark.parametrize("name", RETRIEVAL_CLASSES)
def test_an_exclusive_case_has_that_finding_alone(name: str) -> None:
    (finding,) = sample_findings(np.random.default_rng(3), [name])
    assert isinstance(finding, Finding)
    assert finding.name == name
