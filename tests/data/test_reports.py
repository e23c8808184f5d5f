"""Reports: sections, sentences cut where they end, and policies that read and draw them."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gloria.data import (
    FINDINGS_AND_IMPRESSION,
    FULL_REPORT,
    IMPRESSION,
    MIMICCXR,
    RANDOM_SENTENCE,
    CheXpertPlus,
    ImageReportTable,
    ReportPolicy,
    parse_sections,
    random_sentences,
    split_sentences,
)
from gloria.errors import DataError, DtypeError, OptionError

PIECES = ["No", "edema.", "Clear!", "IMPRESSION:", "1.", "1.5", "cm", "2)", "-", "Dr.", "J.", "R."]
PIECES += ["5", "p.m.", "vs.", "?", "lung", "\n", "\n\n"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("No edema.", ["No edema."]),
        ("A 1.5 cm nodule. No edema!  Stable?", ["A 1.5 cm nodule.", "No edema!", "Stable?"]),
        ("no full stop", ["no full stop"]),
        ("A line\nthat goes on. Next.", ["A line\nthat goes on.", "Next."]),
        ("FINDINGS\n\nClear lungs", ["FINDINGS", "Clear lungs"]),
        ("1. Clear lungs. 2. No edema.", ["1. Clear lungs.", "2. No edema."]),
        ("Compared with 3. 12.", ["Compared with 3. 12."]),
        ("Ödem rechts. Größer.", ["Ödem rechts.", "Größer."]),
        ("12.", ["12."]),
        ("Told to Dr. Smith. No edema.", ["Told to Dr. Smith.", "No edema."]),
        ("By Dr. J. Smith at 5 p.m. by phone.", ["By Dr. J. Smith at 5 p.m. by phone."]),
        ("Seen at 5 p.m. No edema.", ["Seen at 5 p.m.", "No edema."]),
        ("Pneumonia vs. edema. Clear.", ["Pneumonia vs. edema.", "Clear."]),
        ("1. Clear\n2. No edema\n- stable", ["1. Clear", "2. No edema", "- stable"]),
        ("1) CLEAR.\n 2) NO EDEMA.", ["1) CLEAR.", "2) NO EDEMA."]),
        ("Since the 1st. No edema.", ["Since the 1st.", "No edema."]),
        ("Seen by Dr.", ["Seen by Dr."]),
        ("Small R. effusion. L. lung clear.", ["Small R. effusion.", "L. lung clear."]),
        ("Tube on the R. No edema.", ["Tube on the R.", "No edema."]),
        ("Told to Smith, M.D. at 5 P.M. by us.", ["Told to Smith, M.D. at 5 P.M. by us."]),
        ("Seen at 9:30a.m. by us. Clear.", ["Seen at 9:30a.m. by us.", "Clear."]),
        ("IMPRESSION: 1. No edema. 2. Clear.", ["IMPRESSION: 1. No edema.", "2. Clear."]),
        ("IMPRESSION:\n\n1. No edema.", ["IMPRESSION: 1. No edema."]),
        ("No edema.\n\nIMPRESSION:", ["No edema. IMPRESSION:"]),
        ("A. Stable nodule. B. No edema.", ["A. Stable nodule.", "B. No edema."]),
        ("Impression: I. Clear. II. Stable.", ["Impression: I. Clear.", "II. Stable."]),
        ("Nodule of ca. 5 mm. Clear.", ["Nodule of ca. 5 mm.", "Clear."]),
        ("Edema? ? pneumonia.", ["Edema?", "? pneumonia."]),
        (
            "Paged Dr. ___ at 3:45 p.m. on ___. Clear.",
            ["Paged Dr. ___ at 3:45 p.m. on ___.", "Clear."],
        ),
        (" \n ", []),
        ("", []),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences


@given(st.lists(st.sampled_from(PIECES), max_size=20).map(" ".join))
def test_no_sentence_loses_anything_and_each_has_a_letter(text):
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(any(map(str.isalpha, each)) for each in sentences[1:])


def test_every_sentence_is_drawn_as_often():
    generator = torch.Generator().manual_seed(0)
    report = "One. Two. Three."
    drawn = Counter(random_sentences([report] * 900, generator))
    assert set(drawn) == {"One.", "Two.", "Three."}
    assert min(drawn.values()) > 250  # 300 expected, standard deviation 14


def test_the_generator_alone_decides():
    reports = [f"A{n}. B{n}. C{n}." for n in range(20)]
    state = torch.get_rng_state()
    first, second = (
        random_sentences(reports, torch.Generator().manual_seed(seed)) for seed in (1, 1)
    )
    assert first == second
    assert torch.equal(state, torch.get_rng_state())
    assert first != random_sentences(reports, torch.Generator().manual_seed(2))


def test_a_text_without_a_sentence_stays():
    assert random_sentences(["", "12"], torch.Generator()) == ["", "12"]


MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough  // pneumonia?

 FINDINGS:

 The lungs are clear.  A 1.5 cm nodule
 is unchanged.
 LINES AND TUBES: In place.

 CONCLUSION:

 1.  No acute process.
 2.  Stable nodule

 NOTIFICATION:  Told to Dr. Smith.
"""
PLUS = """NARRATIVE:
RADIOGRAPHIC EXAMINATION OF THE CHEST: 1/23/2005

CLINICAL HISTORY: 45 years of age.

IMPRESSION:

1. STABLE CARDIOMEGALY: UNCHANGED.  2. NO EFFUSION.
END OF IMPRESSION:
SUMMARY:4-POSSIBLE SIGNIFICANT ABNORMALITY
"""


def test_sections_of_mimic_and_chexpert_plus():
    sections = parse_sections(MIMIC)
    assert list(sections) == [
        "final report",
        "examination",
        "indication",
        "findings",
        "impression",
        "notification",
    ]
    # an unknown heading stays where it is
    assert sections["findings"].endswith("is unchanged.\n LINES AND TUBES: In place.")
    assert sections["impression"] == "1.  No acute process.\n 2.  Stable nodule"
    sections = parse_sections(PLUS)
    assert sections["narrative"] == "RADIOGRAPHIC EXAMINATION OF THE CHEST: 1/23/2005"
    assert sections["history"] == "45 years of age."
    assert sections["impression"] == "1. STABLE CARDIOMEGALY: UNCHANGED.  2. NO EFFUSION."
    assert sections["end of impression"] == ""


@pytest.mark.parametrize("report", [MIMIC, PLUS, "No headings at all.", "Impression: a", ""])
def test_no_word_of_a_report_is_in_no_section(report):
    """Headings aside, the words come out as they went in."""
    sections = parse_sections(report)
    words = report.replace(":", ": ").split()
    left = " ".join(sections.values()).replace(":", ": ").split()
    rest = iter(words)
    assert all(word in rest for word in left)
    headings = {"": 0, "final report": 2, "end of impression": 3, "history": 2}
    assert len(words) - len(left) == sum(headings.get(name, 1) for name in sections)


@pytest.mark.parametrize(
    "report, sections",
    [
        ("Text before. FINDINGS: Clear.", {"": "Text before.", "findings": "Clear."}),
        ("FINDINGS: A. IMPRESSION: B. FINDINGS: C.", {"findings": "A.\n\nC.", "impression": "B."}),
        ("Findings: a\nimpression : b", {"findings": "a", "impression": "b"}),
        ("The findings: none.", {"": "The findings: none."}),
        ("Findings: Clear.  Impression: b.", {"findings": "Clear.", "impression": "b."}),
        ("Clear? Conclusion: b.", {"": "Clear?", "impression": "b."}),
        ("Findings: A. Comparison: none. B.", {"findings": "A. Comparison: none. B."}),
        ("Findings: My Impression: b.", {"findings": "My Impression: b."}),
        ("FINDINGS AND IMPRESSION: Clear.", {"impression": "Clear."}),
        ("FINDINGS & IMPRESSION: Clear.", {"impression": "Clear."}),
        ("Impression(s): a\r\nFINAL IMPRESSION: b", {"impression": "a\n\nb"}),
        ("REASON FOR THIS EXAMINATION: a", {"indication": "a"}),
        ("IMPRESSION:", {"impression": ""}),
        ("", {}),
    ],
)
def test_sections(report, sections):
    assert parse_sections(report) == sections


def test_policies():
    assert IMPRESSION.select(MIMIC) == "1.  No acute process.\n 2.  Stable nodule"
    assert FINDINGS_AND_IMPRESSION.select("IMPRESSION: B. FINDINGS: A.") == "A.\n\nB."
    assert FULL_REPORT.select(f" {PLUS} ") == PLUS.strip()
    assert IMPRESSION.select("FINDINGS: A.") == ""
    assert FINDINGS_AND_IMPRESSION.select({"impression": "B.", "findings": ""}) == "B."
    assert FULL_REPORT.select({"findings": "A.", "impression": "B."}) == "A.\n\nB."
    for sections in (("conclusions",), ("findings", "lungs"), ()):
        with pytest.raises(OptionError, match="sections must be a tuple of accession number, add"):
            ReportPolicy(sections)


def test_a_sentence_depends_on_seed_epoch_and_index_only():
    text = "One. Two. Three."
    state = torch.get_rng_state()
    drawn = [
        [RANDOM_SENTENCE.draw(text, seed=seed, epoch=epoch, index=index) for epoch in range(200)]
        for seed, index in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn[0] == drawn[3]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    for sentences in drawn:
        counts = Counter(sentences)
        assert set(counts) == {"One.", "Two.", "Three."}
        assert min(counts.values()) > 40  # 67 expected, standard deviation 7
    assert FULL_REPORT.draw(text, seed=0, epoch=0, index=0) == text
    assert RANDOM_SENTENCE.draw("12", seed=0, epoch=0, index=0) == "12"


def test_policies_of_a_batch():
    generator = torch.Generator().manual_seed(0)
    texts = ["One. Two.", "Three."]
    assert FULL_REPORT(texts, generator) == texts
    first, second = RANDOM_SENTENCE(texts, generator)
    assert first in ("One.", "Two.")
    assert second == "Three."


@pytest.mark.parametrize("reader", [ImageReportTable, CheXpertPlus, MIMICCXR])
def test_the_name_of_a_section_is_no_policy(reader):
    with pytest.raises(DtypeError, match=r"policy must be a ReportPolicy.*got 'impression'"):
        reader("none.csv", size=(4, 4), policy="impression")


def test_a_policy_is_seen_by_a_table(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    path = tmp_path / "my.csv"
    path.write_text('image,report\na.png,"FINDINGS: A. IMPRESSION: B."\na.png,FINDINGS: C.\n')
    with pytest.raises(
        DataError, match="row 3, column 'report': the report has no word in a section"
    ):
        ImageReportTable(path, size=(4, 4), policy=IMPRESSION)
    table = ImageReportTable(path, size=(4, 4), policy=IMPRESSION, skip_incomplete=True)
    assert table.reports == ["B."]
    assert len(table.skipped) == 1
