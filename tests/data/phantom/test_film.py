"""Films show their findings, and masks sit exactly on them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gloria.data.phantom import FINDINGS, Finding
from gloria.data.phantom.case import sample_case
from gloria.data.phantom.film import Anatomy, _lay_out, _strokes, draw_film

SIDES: dict[str, tuple[str | None, ...]] = {
    "atelectasis": ("left", "right", "bilateral"),
    "cardiomegaly": (None,),
    "consolidation": ("left", "right"),
    "edema": ("bilateral",),
    "pleural effusion": ("left", "right", "bilateral"),
    "pneumothorax": ("left", "right"),
}
EVERY_FINDING = [
    Finding(name, severity, side, zone)
    for name in FINDINGS
    for severity in (1, 2, 3)
    for side in SIDES[name]
    for zone in (("upper", "mid", "lower") if name == "consolidation" else (None,))
]


def draw(
    case: list[Finding], seed: int, size: int = 64, contrast: float = 1.7
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    image, masks = draw_film(np.random.default_rng(seed), case, size=size, contrast=contrast)
    assert image.dtype == np.uint8
    return image.astype(float), masks


def mask_of(finding: Finding, seed: int, size: int = 64) -> NDArray[np.bool_]:
    return draw([finding], seed, size)[1][FINDINGS.index(finding.name)]


def difference(finding: Finding, seed: int, size: int = 64) -> NDArray[np.float64]:
    """What the finding changes in the film of one and the same body."""
    return np.abs(draw([finding], seed, size)[0] - draw([], seed, size)[0])


def centroid(weights: NDArray[np.generic]) -> NDArray[np.float64]:
    rows, columns = np.indices(weights.shape)
    return np.array([(rows * weights).sum(), (columns * weights).sum()]) / weights.sum()


@pytest.mark.parametrize("finding", EVERY_FINDING, ids=str)
def test_a_finding_has_a_mask_on_its_side_and_no_other_has_one(finding: Finding) -> None:
    for seed in range(3):
        _, masks = draw([finding], seed)
        present = masks.any(axis=(1, 2))
        assert list(present) == [name == finding.name for name in FINDINGS]
        mask = masks[FINDINGS.index(finding.name)]
        patients_right, patients_left = mask[:, :32].sum(), mask[:, 32:].sum()
        if finding.side == "left":
            assert patients_left > 0.95 * mask.sum()
        elif finding.side == "right":
            assert patients_right > 0.95 * mask.sum()
        else:
            assert min(patients_left, patients_right) > 0.15 * mask.sum()


@pytest.mark.parametrize("size", [32, 33, 48])
def test_the_smallest_sizes_keep_every_finding(size: int) -> None:
    for finding in EVERY_FINDING:
        assert mask_of(finding, 5, size).any(), finding


LOCAL = [f for f in EVERY_FINDING if f.name not in ("cardiomegaly", "atelectasis")]


@pytest.mark.parametrize("finding", LOCAL, ids=str)
def test_what_a_finding_changes_lies_in_its_mask(finding: Finding) -> None:
    changes, mask = difference(finding, 2, 128), mask_of(finding, 2, 128)
    grown = np.zeros_like(mask)
    for dy in range(-10, 11):
        for dx in range(-10, 11):
            grown |= np.roll(mask, (dy, dx), (0, 1))
    assert changes[grown].sum() > 0.9 * changes.sum()
    assert changes[mask].mean() > 12 * changes[~grown].mean()


@pytest.mark.parametrize("name", FINDINGS)
def test_masks_are_not_shifted_against_what_is_drawn(name: str) -> None:
    """Averaged over films, no shift of the mask explains the picture better than none.

    At 64 px one cell of an 8 x 8 region grid is 8 px; this would show a quarter of a pixel.
    """
    findings = [f for f in EVERY_FINDING if f.name == name]
    shifts = [(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4)]
    score = np.zeros(len(shifts))
    for finding in findings:
        seed = EVERY_FINDING.index(finding)
        image, masks = draw([finding], seed, 256)
        changes, mask = np.abs(image - draw([], seed, 256)[0]), masks[FINDINGS.index(name)]
        score += [changes[np.roll(mask, shift, (0, 1))].mean() for shift in shifts]
    best = shifts[int(np.argmax(score))]
    assert max(map(abs, best)) <= 1, best


@pytest.mark.parametrize("zone", ["upper", "mid", "lower"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_centre_of_a_consolidation_is_the_centre_of_its_mask(side: str, zone: str) -> None:
    offsets = []
    for seed in range(6):
        finding = Finding("consolidation", 1, side, zone)
        changes, mask = difference(finding, seed), mask_of(finding, seed)
        changes[changes < 0.25 * changes.max()] = 0
        offsets.append(centroid(changes) - centroid(mask))
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.5  # pixels of 64


@pytest.mark.parametrize("finding", EVERY_FINDING[::4], ids=str)
def test_every_size_shows_the_same_film(finding: Finding) -> None:
    small, small_masks = draw([finding], 9, 64)
    large, large_masks = draw([finding], 9, 256)
    shrunk = large.reshape(64, 4, 64, 4).mean((1, 3))
    assert np.abs(small - shrunk).mean() < 12  # grey values, the grain of the small film included
    assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.98

    index = FINDINGS.index(finding.name)
    covered = large_masks[index].reshape(64, 4, 64, 4).mean((1, 3)) > 0.5
    overlap = (small_masks[index] & covered).sum()
    assert overlap > 0.7 * (small_masks[index] | covered).sum()


def test_masks_of_every_size_have_the_same_centre() -> None:
    offsets = []
    for seed, finding in enumerate(EVERY_FINDING):
        small, large = mask_of(finding, seed, 64), mask_of(finding, seed, 256)
        offsets.append(centroid(small) - (centroid(large) - 1.5) / 4)
    assert np.abs(offsets).max() < 1  # the pixels of a thin mask are counted in whole ones
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.1


def thorax_and_heart(case: list[Finding], seed: int) -> tuple[float, float]:
    """Widths in pixels of the thorax and the heart, read off masks of the same body.

    A large effusion on both sides reaches both walls; it is drawn with the same anatomy.
    """
    fluid = mask_of(Finding("pleural effusion", 3, "bilateral"), seed, 256)
    columns = np.flatnonzero(fluid.any(0))
    _, masks = draw(case, seed, 256)
    heart = np.flatnonzero(masks[FINDINGS.index("cardiomegaly")].any(0))
    return float(np.ptp(columns) + 1), float(np.ptp(heart) + 1)


@pytest.mark.parametrize(("severity", "low", "high"), [(1, 0.53, 0.575), (2, 0.575, 0.63),
                                                       (3, 0.63, 0.70)])  # fmt: skip
def test_cardiothoracic_ratio_of_an_enlarged_heart(severity: int, low: float, high: float) -> None:
    for seed in range(5):
        thorax, heart = thorax_and_heart([Finding("cardiomegaly", severity, None)], seed)
        assert low - 0.015 < heart / thorax < high + 0.015


def test_an_enlarged_heart_is_visible_as_one() -> None:
    """The heart's own shadow, measured in the picture: larger in cardiomegaly than in health."""
    finding = Finding("cardiomegaly", 2, None)
    for seed in range(5):
        sick, masks = draw([finding], seed, 128)
        well, _ = draw([], seed, 128)
        mask = masks[FINDINGS.index("cardiomegaly")]
        assert (sick - well)[mask].mean() > 3 * np.abs((sick - well)[~mask].mean())


def test_density_goes_the_right_way() -> None:
    for finding in LOCAL:
        mask = mask_of(finding, 4)
        change = (draw([finding], 4)[0] - draw([], 4)[0])[mask].mean()
        assert change < -8 if finding.name == "pneumothorax" else change > 8, finding


def test_small_consolidations_and_faint_bands_stand_out_from_the_grain() -> None:
    for name, severity in (("consolidation", 1), ("atelectasis", 1)):
        for finding in [f for f in EVERY_FINDING if f.name == name and f.severity == severity]:
            for seed in range(4):
                mask = mask_of(finding, seed)
                change = (draw([finding], seed)[0] - draw([], seed)[0])[mask].mean()
                assert change > 15, (finding, seed)


def test_contrast_is_a_factor_on_findings_alone() -> None:
    healthy = [draw([], 3, contrast=contrast)[0] for contrast in (1.25, 1.7)]
    np.testing.assert_array_equal(*healthy)
    finding = Finding("consolidation", 2, "left", "mid")
    weak, strong = (draw([finding], 3, contrast=contrast) for contrast in (1.25, 1.7))
    np.testing.assert_array_equal(weak[1], strong[1])
    mask = strong[1].any(0)
    assert strong[0][mask].mean() > weak[0][mask].mean() + 5


def test_films_are_never_flipped() -> None:
    """The heart's apex, the aortic knob and the lower diaphragm stay on the patient's left."""
    hearts = [mask_of(Finding("cardiomegaly", 1, None), seed) for seed in range(20)]
    assert np.mean([centroid(heart)[1] for heart in hearts]) > 33
    average = np.mean([draw([], seed)[0] for seed in range(40)], axis=0)
    assert average[22:44, 32:].mean() > average[22:44, :32][:, ::-1].mean() + 3


def test_findings_in_company_keep_their_masks() -> None:
    for seed in range(150):
        case = list(sample_case(np.random.default_rng(seed)))
        _, masks = draw(case, seed)
        shown = {finding.name for finding in case}
        assert [bool(mask.any()) for mask in masks] == [name in shown for name in FINDINGS]


@pytest.mark.parametrize("size", [32, 61])
def test_strokes_are_drawn_wherever_they_reach_and_nowhere_else(size: int) -> None:
    """Against the distance from every pixel to a finely sampled segment, in and off the picture."""
    layers = _lay_out(Anatomy(0.1, 1.05, (0.05, -0.03), 0.8, (0.4, 0.5), 0.45, 0.3), size)
    segments = [(-0.5, -0.2, 0.3, 0.6), (0.9, 0.0, 1.4, 0.1), (2.0, 2.0, 2.5, 2.0)]
    half_widths = [0.05, 0.02, 0.3]
    expected = np.zeros((size, size))
    for (x0, y0, x1, y1), half_width in zip(segments, half_widths, strict=True):
        t = np.linspace(0, 1, 400)[:, None, None]
        dx, dy = layers.x - (x0 + t * (x1 - x0)), layers.y - (y0 + t * (y1 - y0))
        distance = np.sqrt(dx**2 + dy**2).min(0)
        ramp = (half_width - distance) / layers.pixel + 0.5
        expected = np.maximum(expected, ramp.clip(0, min(1, 2 * half_width / layers.pixel)))
    np.testing.assert_allclose(_strokes(layers, segments, half_widths), expected, atol=2e-3)
    assert 0.01 < (expected > 0).mean() < 0.3
