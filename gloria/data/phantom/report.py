"""Reports of phantom cases in radiology's own language, and prompts in the same language.

Templates are written in a small notation: ``(a|b)`` is a choice, ``{name}`` a blank to fill, and
square brackets hold the words that name the finding, so that their place in the report is known
by construction and never guessed from the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gloria.data.phantom.case import FINDINGS, Finding
from gloria.data.prompts import combine


class Mention(NamedTuple):
    """Where a report speaks of a finding.

    Attributes:
        finding: one of :data:`~gloria.data.phantom.FINDINGS`.
        polarity: ``"positive"`` if the report says it is there, ``"negative"`` if it is denied.
        start: index of the first of the words that name it, in ``split_words(report)``.
        stop: index after the last of those words.
        side: the patient's side as the sentence says it: ``"left"``, ``"right"``,
            ``"bilateral"`` or None.
    """

    finding: str
    polarity: str
    start: int
    stop: int
    side: str | None


class Sentence(NamedTuple):
    """One sentence of a report.

    Attributes:
        text: the sentence; the report is its sentences joined by spaces.
        start: index of its first word in ``split_words(report)``.
        stop: index after its last word.
        mentions: the findings it speaks of: one if positive, one or two if it denies, none in a
            sentence about anything else. Subtract ``start`` to count from the sentence's own
            first word.
    """

    text: str
    start: int
    stop: int
    mentions: tuple[Mention, ...]


def split_words(text: str) -> list[str]:
    """Split a text into the words that :class:`Mention` counts.

    A word is a run of lower-cased letters and digits, or a single other character that is not a
    space: what the pre-tokenizer of a lower-casing BERT makes, so the words of a text encoder that
    merges word pieces by the tokenizer's word ids are these, in this order.

    Example:
        >>> split_words("Small left-sided effusion.")
        ['small', 'left', '-', 'sided', 'effusion', '.']
    """
    return re.findall(r"[^\W_]+|[^\w\s]|_", text.lower())


_UNMENTIONED = 0.03
_SEVERITY_DROPPED = 0.25
_NUMBER_OF_DISTRACTORS = (0.35, 0.40, 0.25)

_SEVERITY_WORDS: dict[str, tuple[str, str, str]] = {  # mild, moderate, severe
    "atelectasis": ("(mild|minimal|slight)", "moderate", "(severe|marked|extensive)"),
    "cardiomegaly": ("(mild|slight|borderline)", "moderate", "(severe|marked)"),
    "consolidation": ("(mild|small|subtle)", "(moderate|patchy)", "(severe|extensive|large)"),
    "edema": ("(mild|minimal|early)", "moderate", "(severe|marked|florid)"),
    "pleural effusion": ("(small|trace|mild)", "(moderate|moderate-sized)", "(large|massive)"),
    "pneumothorax": ("(small|tiny|mild)", "moderate", "(large|severe)"),
}
_SEVERITY_ADVERBS = ("(mildly|slightly)", "moderately", "(severely|markedly)")

_POSITIVE: dict[str, tuple[str, ...]] = {
    "atelectasis": (
        "{severity} {side} (basilar|basal|lower lobe) "
        "[(atelectasis|linear atelectasis|subsegmental atelectasis|bandlike atelectasis)].",
        "There is {severity} [(atelectasis|discoid atelectasis|volume loss)] "
        "at the {side} (lung base|base){s}.",
        "(Linear|Bandlike|Streaky) opacities at the {side} (lung base|base){s}, "
        "(likely|probably|compatible with) {severity} [atelectasis].",
        "Low lung volumes with {severity} {side} basilar [(atelectasis|subsegmental atelectasis)].",
        "[(Plate-like|Linear|Subsegmental) atelectasis] (in|at) the {side} lung base{s}"
        "(, unchanged|).",
    ),
    "cardiomegaly": (
        "{severity} [(cardiomegaly|cardiac enlargement|enlargement of the heart"
        "|enlargement of the cardiac silhouette)].",
        "The (heart|cardiac silhouette|heart size) is {severely} [enlarged].",
        "{severely} [enlarged (heart|cardiac silhouette|cardiomediastinal silhouette)].",
        "There is {severity} [(cardiomegaly|cardiac enlargement)].",
        "Findings (suggest|are consistent with|are compatible with) {severity} [cardiomegaly].",
    ),
    "consolidation": (
        "{severity} {place} "
        "[(consolidation|airspace opacity|airspace disease|infiltrate|opacification)].",
        "There is {a} {severity} [(consolidation|airspace opacity|infiltrate|focal opacity)] "
        "in the {place}.",
        "[(Consolidation|Airspace opacity|Infiltrate|Focal opacity)] in the {place}, "
        "(concerning for|suspicious for|possibly) pneumonia.",
        "(Possible|Probable|Suspected) {severity} [pneumonia] in the {place}.",
        "[(Airspace opacity|Opacification|Consolidation)] (projects over|is seen in|is noted in) "
        "the {place}.",
    ),
    "edema": (
        "{severity} [(pulmonary edema|interstitial edema|pulmonary vascular congestion"
        "|vascular congestion)].",
        "There is {severity} [(pulmonary edema|edema|interstitial edema)].",
        "(Bilateral|Diffuse) (perihilar|interstitial) opacities, "
        "(likely|probably|compatible with) {severity} [(edema|pulmonary edema)].",
        "[Perihilar haze] with Kerley lines, (suggesting|consistent with) {severity} edema.",
        "Findings (suggest|are consistent with) {severity} "
        "[(pulmonary edema|vascular congestion|interstitial congestion)].",
    ),
    "pleural effusion": (
        "{severity} {side} [(pleural effusion{s}|effusion{s}|pleural fluid)].",
        "There {is} {a} {severity} {side} [(pleural effusion{s}|effusion{s})].",
        "{side} costophrenic angle (blunting|obscuration), "
        "(likely|probably|compatible with) {a} {severity} [(effusion{s}|pleural effusion{s})].",
        "(Layering|Dependent) {severity} [(pleural effusion{s}|pleural fluid)] {on_side}.",
    ),
    "pneumothorax": (
        "{severity} {side} [(pneumothorax|apical pneumothorax)].",
        "There is {a} {severity} {side} [(pneumothorax|apical pneumothorax)].",
        "{side} apical (pleural line|lucency), "
        "(consistent with|suspicious for|compatible with) {a} {severity} [pneumothorax].",
        "{severity} [(pneumothorax|pleural air)] (along|at) the {side} apex.",
    ),
}

_NEGATIVE = ("No {denied}.", "No (evidence of|convincing|definite) {denied}.")
_DENIED = {
    "atelectasis": "[atelectasis]",
    "cardiomegaly": "[(cardiomegaly|cardiac enlargement)]",
    "consolidation": "[(consolidation|focal consolidation|infiltrate|pneumonia)]",
    "edema": "[(edema|pulmonary edema|vascular congestion)]",
    "pleural effusion": "[(pleural effusion|effusion|pleural fluid)]",
    "pneumothorax": "[pneumothorax]",
}

_DISTRACTORS = (
    "Mild degenerative changes of the thoracic spine.",
    "Mild (scoliosis|dextroscoliosis).",
    "Old healed (left|right) rib fracture.",
    "Surgical clips in the (left|right) axilla.",
    "Mild atherosclerotic calcification of the aortic arch.",
    "Tortuous thoracic aorta.",
    "(Left|Right) shoulder osteoarthritis is unchanged.",
    "Calcified granuloma at the (left|right) apex.",
    "(Right|Left) central venous catheter in place.",
    "Monitoring leads overlie the chest.",
    "The osseous structures are intact.",
    "The trachea is midline.",
    "Portable frontal view of the chest.",
    "Comparison is made to the prior examination.",
)

# severity, subtype, location
_PROMPTS: dict[str, tuple[str, str, str]] = {
    "atelectasis": (
        "|minimal|mild|moderate",
        "atelectasis|subsegmental atelectasis|linear atelectasis",
        "at the left lung base|at the right lung base|at the lung bases",
    ),
    "cardiomegaly": (
        "|mild|moderate|severe|marked",
        "cardiomegaly|cardiac enlargement|enlargement of the cardiac silhouette",
        "",
    ),
    "consolidation": (
        "|patchy|extensive",
        "consolidation|airspace opacity|infiltrate",
        "in the left upper lobe|in the left lower lobe|in the right upper lobe"
        "|in the right lower lobe",
    ),
    "edema": (
        "|mild|moderate|severe",
        "pulmonary edema|interstitial edema|vascular congestion|perihilar edema",
        "",
    ),
    "pleural effusion": (
        "|small|moderate|large",
        "pleural effusion|layering effusion|pleural fluid",
        "on the left|on the right|on both sides",
    ),
    "pneumothorax": (
        "|small|moderate|large",
        "pneumothorax|apical pneumothorax",
        "on the left|on the right",
    ),
}


def phantom_prompts() -> dict[str, list[str]]:
    """Zero-shot prompts of every finding: each severity x subtype x location, always the same.

    Returns:
        ``{finding: prompts}`` in the order of :data:`~gloria.data.phantom.FINDINGS`. Their words
        all occur in the training reports; the location follows the finding, which few report
        sentences do.

    Example:
        >>> phantom_prompts()["cardiomegaly"][:2]
        ['cardiomegaly', 'cardiac enlargement']
    """
    return {name: combine(*(part.split("|") for part in _PROMPTS[name])) for name in FINDINGS}


def write_report(rng: np.random.Generator, case: Sequence[Finding]) -> tuple[Sentence, ...]:
    """Tell a case in shuffled sentences.

    One sentence for each finding (3 % are left unmentioned), one that denies one or two absent
    findings, none to two about something else.
    """
    drafts = [_tell(rng, finding) for finding in case if rng.random() >= _UNMENTIONED]
    drafts.append(_deny(rng, [name for name in FINDINGS if name not in {f.name for f in case}]))
    how_many = rng.choice(len(_NUMBER_OF_DISTRACTORS), p=_NUMBER_OF_DISTRACTORS)
    for index in rng.choice(len(_DISTRACTORS), size=how_many, replace=False):
        drafts.append(_Draft(_choose(rng, _DISTRACTORS[index]), (), "positive", None))

    sentences, start = [], 0
    for index in rng.permutation(len(drafts)):
        sentences.append(_finish(drafts[index], start))
        start = sentences[-1].stop
    return tuple(sentences)


class _Draft(NamedTuple):
    """A sentence whose finding words are still in square brackets."""

    text: str
    findings: tuple[str, ...]  # one for each pair of brackets
    polarity: str
    side: str | None


def _tell(rng: np.random.Generator, finding: Finding) -> _Draft:
    template = _POSITIVE[finding.name][rng.integers(len(_POSITIVE[finding.name]))]
    level = finding.severity - 1
    dropped = rng.random() < _SEVERITY_DROPPED
    both = finding.side == "bilateral"
    filled = _fill(
        template,
        {
            "severity": "" if dropped else _SEVERITY_WORDS[finding.name][level],
            "severely": "" if dropped else _SEVERITY_ADVERBS[level],
            "side": finding.side or "",
            "on_side": "(bilaterally|on both sides)" if both else f"on the {finding.side}",
            "place": _place(finding),
            "s": "s" if both else "",
            "is": "are" if both else "is",
            "a": "" if both else "a",
        },
    )
    # Edema is always on both sides and mostly not said to be.
    text = _choose(rng, filled)
    side = finding.side if finding.name != "edema" or "ilateral" in text else None
    return _Draft(text, (finding.name,), "positive", side)


def _place(finding: Finding) -> str:
    if finding.zone == "mid":
        lung = "(mid lung|midlung zone)" if finding.side == "left" else "(mid lung|middle lobe)"
        return f"{finding.side} {lung}"
    return f"{finding.side} ({finding.zone} lobe|{finding.zone} lung)"


def _deny(rng: np.random.Generator, absent: Sequence[str]) -> _Draft:
    how_many = int(rng.integers(1, 3))
    names = tuple(absent[i] for i in rng.choice(len(absent), size=how_many, replace=False))
    template = _NEGATIVE[rng.integers(len(_NEGATIVE))]
    text = _fill(template, {"denied": " or ".join(_DENIED[name] for name in names)})
    return _Draft(_choose(rng, text), names, "negative", None)


def _fill(template: str, blanks: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda blank: blanks[blank[1]], template)


def _choose(rng: np.random.Generator, text: str) -> str:
    """Settle every choice, then the spaces, the article and the capital."""

    def settle(choice: re.Match[str]) -> str:
        options = choice[1].split("|")
        return options[rng.integers(len(options))]

    text = re.sub(r"\(([^()]*)\)", settle, text)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"\ba (?=\[?[aeiou])", "an ", text)
    return re.sub(r"[a-z]", lambda letter: letter[0].upper(), text, count=1, flags=re.IGNORECASE)


def _finish(draft: _Draft, start: int) -> Sentence:
    """Take the brackets out and say which words stood in them."""
    pieces = re.split(r"[\[\]]", draft.text)  # outside, inside, outside, inside, ..., outside
    edges = start + np.cumsum([0] + [len(split_words(piece)) for piece in pieces])
    mentions = tuple(
        Mention(name, draft.polarity, int(edges[2 * i + 1]), int(edges[2 * i + 2]), draft.side)
        for i, name in enumerate(draft.findings)
    )
    return Sentence("".join(pieces), start, int(edges[-1]), mentions)
