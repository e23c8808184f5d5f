"""What of a report is read: its sections, its sentences, and policies that choose among them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from gloria.data.rows import is_blank
from gloria.errors import DataError, DtypeError, OptionError

# What a section is called here, and how else in headings of MIMIC-CXR and CheXpert Plus. Only known
# ones end a section: a line of an impression such as "LINES AND TUBES: UNCHANGED." stays in it.
_HEADINGS: dict[str, tuple[str, ...]] = {
    "accession number": (),
    "addendum": (),
    "comparison": ("comparisons",),
    "end of impression": (),
    "examination": ("exam", "type of examination"),
    "final report": (),
    "findings": ("finding", "finding(s)"),
    "history": ("clinical history", "clinical information"),
    "impression": (
        *("conclusion", "conclusions", "final impression", "impression(s)", "impressions"),
        # both in one: what is concluded is there
        *("findings & impression", "findings and impression"),
        *("findings/impression", "impression/findings"),
    ),
    "indication": (
        *("clinical indication", "reason for exam", "reason for examination"),
        *("reason for this exam", "reason for this examination"),
    ),
    "narrative": (),
    "notification": (),
    "procedure": (),
    "procedure comments": (),
    "recommendation": ("recommendation(s)", "recommendations"),
    "summary": (),
    "technique": (),
    "wet read": (),
}
_SECTIONS = {each: name for name, others in _HEADINGS.items() for each in (name, *others)}
_NAMES = "|".join(map(re.escape, _SECTIONS))
_MAIN = "|".join(
    re.escape(heading.capitalize())
    for heading, name in _SECTIONS.items()
    if name in ("findings", "impression")
)
_HEADING = re.compile(
    rf"^[ \t]*+(?P<line>{_NAMES})[ \t]*:"  # in any case at the start of a line
    rf"|(?<![\w/])(?P<inside>(?-i:{_NAMES.upper()}))[ \t]*:"  # in capitals anywhere
    rf"|(?<=[.!?]\s)\s?(?P<behind>(?-i:{_MAIN}))[ \t]*:"  # "... clear. Impression:"
    r"|^[ \t]*+(?P<alone>(?-i:FINAL REPORT))[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)

# a full stop inside a number, as in "1.5 cm", has no white space behind it
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n|\n\s*(?=(?:\d{1,2}[.)]|[-•*])\s)")
# behind these, and behind an initial that follows a title, a full stop ends nothing; nor does a
# colon, or what numbers the items of a list, as in "IMPRESSION: 1. No acute process. B. Stable."
_UNFINISHED = re.compile(
    r"(?:^|[\s(])(?:(?:drs?|mrs?|ms|prof|st)\.(?:\s+[A-Z]\.)*|vs\.|ca\.|approx\.|e\.g\.|i\.e\.)$"
    r"|:$|(?:^|:)\s*(?:\d{1,2}|[a-z]|[ivx]+)\.$",
    re.IGNORECASE,
)
# behind these it ends nothing where a small letter follows: "5 p.m. by phone", "R. lung is clear"
_SHORTENED = re.compile(r"(?:^|[\s(\d])(?:(?:[a-z]\.)+|(?:rt|lt|pts?|lat|etc)\.)$", re.IGNORECASE)
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[^\W_]")  # or a part of one: not white space, not punctuation


def parse_sections(report: str) -> dict[str, str]:
    r"""The sections of a report, by name, in their order.

    A section begins at a heading that reports of MIMIC-CXR and CheXpert Plus have, with a colon: in
    any case at the start of a line, or in capitals anywhere; those of findings and impression also
    capitalised behind a sentence ("Clear lungs. Impression: ..."). Headings of one meaning share a
    name ("CONCLUSION" is ``impression``, "EXAM" ``examination``); sections of one name are joined.
    An unknown heading begins nothing: its line stays in the section it stands in. What comes before
    the first heading is the section ``""``. Nothing is dropped; a heading without text is an empty
    section.

    Example:
        >>> parse_sections("FINDINGS: Clear lungs.\n\nIMPRESSION: No acute process.")
        {'findings': 'Clear lungs.', 'impression': 'No acute process.'}
    """
    headings = list(_HEADING.finditer(report))
    starts = [0, *(heading.end() for heading in headings)]
    ends = [*(heading.start() for heading in headings), len(report)]
    names = ["", *(_SECTIONS[heading[heading.lastgroup or 0].lower()] for heading in headings)]
    sections: dict[str, str] = {}
    for name, start, end in zip(names, starts, ends, strict=True):
        text = report[start:end].strip()
        if name or text:
            sections[name] = "\n\n".join(filter(None, [sections.get(name, ""), text]))
    return sections


def split_sentences(text: str) -> list[str]:
    """The sentences of a text.

    A sentence ends at a full stop, exclamation or question mark with white space behind it, at a
    blank line, or before a line that begins a list's item. The full stop of a title ("Dr. Smith")
    or of a short form ("vs.", "R. lung") ends nothing. Pieces without a letter, such as the number
    of a list's item, and what ends with a colon, such as a heading, go with the sentence that
    follows, or at the end with the one before; so nothing is dropped.

    Example:
        >>> split_sentences("1. A 1.5 cm nodule, told to Dr. Smith. 2. No effusion.")
        ['1. A 1.5 cm nodule, told to Dr. Smith.', '2. No effusion.']
    """
    sentences: list[str] = []
    waiting: list[str] = []
    pieces = filter(None, map(str.strip, _SENTENCE_END.split(text)))
    for piece, following in pairwise([*pieces, ""]):
        waiting.append(piece)
        candidate = " ".join(waiting)
        goes_on = _UNFINISHED.search(candidate) or (
            following[:1].islower() and _SHORTENED.search(candidate)
        )
        if _LETTER.search(candidate) and not goes_on:
            sentences.append(candidate)
            waiting = []
    if waiting:
        sentences[-1:] = [" ".join([*sentences[-1:], *waiting])]
    return sentences


def random_sentences(texts: Sequence[str], generator: torch.Generator) -> list[str]:
    """One sentence of each text, drawn at random: a text policy for training.

    GLoRIA and ConVIRT read one sentence of a report in a step, and all of it afterwards.

    Args:
        texts: the reports of a batch.
        generator: a CPU generator, the only source of randomness.

    Returns:
        As many texts; one without a sentence as it is.
    """
    chosen = []
    for text in texts:
        sentences = split_sentences(text) or [text]
        number = int(torch.randint(len(sentences), (), generator=generator, device="cpu"))
        chosen.append(sentences[number])
    return chosen


@dataclass(frozen=True)
class ReportPolicy:
    """What of a report is read, in two steps.

    :meth:`select` takes the sections, once, when a data set is read. :meth:`draw` takes what one
    epoch reads of them: everything, or one random sentence.

    Attributes:
        sections: names as :func:`parse_sections` gives them, in the order they are joined in; None
            = the whole report, with its headings.
        one_sentence: read one random sentence at a time.

    Example:
        >>> report = "FINDINGS: Clear. No edema. IMPRESSION: Normal. Unchanged."
        >>> IMPRESSION.select(report)
        'Normal. Unchanged.'
        >>> policy = ReportPolicy(("findings", "impression"), one_sentence=True)
        >>> text = policy.select(report)
        >>> [policy.draw(text, seed=0, epoch=epoch, index=0) for epoch in range(3)]
        ['Unchanged.', 'Normal.', 'Unchanged.']
    """

    sections: tuple[str, ...] | None = None
    one_sentence: bool = False

    def __post_init__(self) -> None:
        if self.sections is None:
            return
        if not self.sections or not set(self.sections) <= _HEADINGS.keys():
            raise OptionError(
                f"sections must be a tuple of {', '.join(_HEADINGS)}; got {self.sections!r}."
            )

    def select(self, report: str | Mapping[str, str]) -> str:
        """The chosen sections, joined by blank lines; empty where the report has none of them.

        Args:
            report: its text, or its sections by name where a data set brings them apart.
        """
        if self.sections is None:
            texts = [report] if isinstance(report, str) else list(report.values())
        else:
            sections = parse_sections(report) if isinstance(report, str) else report
            texts = [sections.get(name, "") for name in self.sections]
        return "\n\n".join(filter(None, map(str.strip, texts)))

    def draw(self, text: str, *, seed: int, epoch: int, index: int) -> str:
        """What epoch ``epoch`` reads of the selected text of item ``index``.

        The arguments alone decide, so it is the same in every process and after a restart.
        """
        sentences = split_sentences(text) if self.one_sentence else []
        if not sentences:
            return text
        return sentences[np.random.default_rng([seed, epoch, index]).integers(len(sentences))]

    def __call__(self, texts: Sequence[str], generator: torch.Generator) -> list[str]:
        """The same for a batch of selected texts, drawn with a CPU generator."""
        return random_sentences(texts, generator) if self.one_sentence else list(texts)


FULL_REPORT = ReportPolicy()
IMPRESSION = ReportPolicy(("impression",))
FINDINGS_AND_IMPRESSION = ReportPolicy(("findings", "impression"))
RANDOM_SENTENCE = ReportPolicy(one_sentence=True)


def check_policy(policy: ReportPolicy) -> None:
    """Require a policy, and not the name of a section."""
    if not isinstance(policy, ReportPolicy):
        raise DtypeError(
            f"policy must be a ReportPolicy, such as ReportPolicy(('impression',)); got {policy!r}."
        )


def read_report(where: str, report: str | Mapping[str, str], policy: ReportPolicy) -> str:
    """What a policy selects of a report, with at least one word; ``where`` names the report."""
    text = policy.select(report)
    if not _WORD.search(text) or is_blank(text):
        if policy.sections is not None:
            names = " or ".join(policy.sections)
            raise DataError(f"{where}: the report has no word in a section {names}; got {text!r}.")
        raise DataError(f"{where}: empty report, {text!r} has no word.")
    return text
