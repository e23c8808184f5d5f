"""Reports say what the case holds, and their records say where."""

from __future__ import annotations

import re

import numpy as np
import pytest

from gloria.data.phantom import FINDINGS, Finding, phantom_prompts, split_words
from gloria.data.phantom.case import sample_case
from gloria.data.phantom.report import Sentence, write_report

Case = tuple[Finding, ...]


def draw(index: int) -> tuple[Case, tuple[Sentence, ...]]:
    rng = np.random.default_rng([11, index])
    case = sample_case(rng)
    return case, write_report(rng, case)


REPORTS = [draw(index) for index in range(3000)]

# What words may name a finding, written down by hand and not taken from the templates.
NAMED_BY = {
    "atelectasis": {"atelectasis", "volume"},
    "cardiomegaly": {"cardiomegaly", "enlarged", "enlargement"},
    "consolidation": {
        "consolidation",
        "opacity",
        "disease",
        "infiltrate",
        "opacification",
        "pneumonia",
    },
    "edema": {"edema", "congestion", "haze"},
    "pleural effusion": {"effusion", "effusions", "fluid"},
    "pneumothorax": {"pneumothorax", "air"},
}


def text_of(sentences: tuple[Sentence, ...]) -> str:
    return " ".join(sentence.text for sentence in sentences)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("Moderate-sized effusion, 1.5 cm.", ["moderate", "-", "sized", "effusion", ",", "1", ".",
                                              "5", "cm", "."]),
        ("No  (acute)\tdisease", ["no", "(", "acute", ")", "disease"]),
    ],
)  # fmt: skip
def test_split_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_split_words_are_the_words_of_a_bert_tokenizer() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    for _, sentences in REPORTS[:300]:
        text = text_of(sentences)
        pieces = pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))
        assert split_words(text) == [piece for piece, _ in pieces]


def test_spans_name_the_finding_they_are_recorded_for() -> None:
    seen = set()
    for _, sentences in REPORTS:
        words = split_words(text_of(sentences))
        for sentence in sentences:
            assert words[sentence.start : sentence.stop] == split_words(sentence.text)
            for mention in sentence.mentions:
                assert sentence.start <= mention.start < mention.stop <= sentence.stop
                span = set(words[mention.start : mention.stop])
                assert span & NAMED_BY[mention.finding], (span, mention)
                others = set().union(*(w for n, w in NAMED_BY.items() if n != mention.finding))
                assert not span & others, (span, mention)
                seen.add((mention.finding, mention.polarity))
    assert seen == {(name, polarity) for name in FINDINGS for polarity in ("positive", "negative")}


def test_positive_mentions_are_the_case_and_denials_are_not() -> None:
    unmentioned = shown = 0
    for case, sentences in REPORTS:
        mentions = [mention for sentence in sentences for mention in sentence.mentions]
        names = {finding.name for finding in case}
        told = [mention.finding for mention in mentions if mention.polarity == "positive"]
        assert len(told) == len(set(told))
        assert set(told) <= names
        assert not names & {m.finding for m in mentions if m.polarity == "negative"}
        shown += len(names)
        unmentioned += len(names) - len(told)
    assert unmentioned / shown == pytest.approx(0.03, abs=0.012)


def test_the_side_said_is_the_side_of_the_case() -> None:
    for case, sentences in REPORTS:
        sides = {finding.name: finding.side for finding in case}
        for sentence in sentences:
            words = set(split_words(sentence.text))
            for mention in sentence.mentions:
                if mention.polarity == "negative":
                    assert mention.side is None
                    assert not words & {"left", "right", "bilateral"}
                    continue
                assert mention.side == sides[mention.finding] or mention.finding == "edema"
                said = {
                    "left": bool(words & {"left"}),
                    "right": bool(words & {"right"}),
                    "bilateral": bool(words & {"bilateral", "bilaterally", "both"}),
                }
                assert [side for side, yes in said.items() if yes] == (
                    [mention.side] if mention.side else []
                )


def test_about_nineteen_words_in_shuffled_readable_sentences() -> None:
    lengths = [len(split_words(text_of(sentences))) for _, sentences in REPORTS]
    assert 17 < np.mean(lengths) < 21
    assert min(lengths) >= 3
    denied_last = np.mean([s[-1].text.startswith("No ") for _, s in REPORTS if len(s) == 3])
    assert denied_last == pytest.approx(1 / 3, abs=0.06)
    for _, sentences in REPORTS:
        for sentence in sentences:
            assert re.fullmatch(r"[A-Z][A-Za-z ,-]*[a-z]\.", sentence.text), sentence.text
            assert "  " not in sentence.text
            assert " ," not in sentence.text
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", sentence.text), sentence.text


def test_shares_of_denials_severity_and_distractors() -> None:
    denials = [s for _, sentences in REPORTS for s in sentences if s.text.startswith("No ")]
    assert len(denials) == len(REPORTS)
    pairs = np.mean([len(denial.mentions) == 2 for denial in denials])
    assert pairs == pytest.approx(0.5, abs=0.04)
    assert all((" or " in denial.text) == (len(denial.mentions) == 2) for denial in denials)

    others = [sum(not s.mentions for s in sentences) for _, sentences in REPORTS]
    assert set(others) == {0, 1, 2}

    degree = r"(?i)\b(mild|slight|borderline|moderate|severe|marked)(ly)?\b"
    heart = [
        s.text
        for _, sentences in REPORTS
        for s in sentences
        for m in s.mentions
        if (m.finding, m.polarity) == ("cardiomegaly", "positive")
    ]
    without = np.mean([re.search(degree, text) is None for text in heart])
    assert without == pytest.approx(0.25, abs=0.07)


def test_distractors_hold_words_that_findings_also_use() -> None:
    distractors = {s.text for _, sentences in REPORTS for s in sentences if not s.mentions}
    words = {word for text in distractors for word in split_words(text)}
    assert {"left", "right", "mild"} <= words
    assert not words & set().union(*NAMED_BY.values())


def test_prompts_speak_the_language_of_the_reports() -> None:
    prompts = phantom_prompts()
    assert list(prompts) == list(FINDINGS)
    vocabulary = {word for _, s in REPORTS for word in split_words(text_of(s))}
    everything = [prompt for own in prompts.values() for prompt in own]
    assert len(everything) == len(set(everything))
    for name, own in prompts.items():
        assert len(own) >= 15
        for prompt in own:
            words = split_words(prompt)
            assert set(words) <= vocabulary
            assert set(words) & (NAMED_BY[name] | {"heart"}), prompt
            assert prompt == " ".join(words)


def test_prompts_are_not_copies_of_report_sentences() -> None:
    sentences = {s.text.rstrip(".").lower() for _, report in REPORTS for s in report}
    prompts = [prompt for own in phantom_prompts().values() for prompt in own]
    assert np.mean([prompt in sentences for prompt in prompts]) < 0.25
