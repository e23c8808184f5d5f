"""Which backend runs, and what is said when a named one cannot."""

from types import SimpleNamespace

import pytest
import torch

from gloria.errors import BackendError, GloriaError
from gloria.functional import local_similarity
from gloria.matching import BACKENDS, Problem, choose_backend, einops, explain_backends
from gloria.matching.dispatch import PAPER_PROBLEM

PICKY = SimpleNamespace(
    TAKES_HALF_PRECISION=False,
    READS_MASKED_WORDS=False,
    RUNS_KERNELS=False,
    word_cosines=lambda inputs, options: inputs.regions.new_full(
        (len(inputs.regions), *inputs.words.shape[:2]), 42.0
    ),
    reasons_not_supported=lambda problem: (
        [f"It wants 7 words; got {problem.words}.", f"It wants cuda; got {problem.device}."]
        if problem.words != 7
        else []
    ),
)


@pytest.fixture
def picky(monkeypatch):
    """A faster backend, first in line, that takes texts of 7 words only."""
    for room in ("matching.dispatch", "functional.similarity"):
        monkeypatch.setattr(f"gloria.{room}.BACKENDS", {"picky": PICKY, **BACKENDS})
    monkeypatch.setattr("gloria.matching.dispatch.TINY", 0)


def test_the_definition_is_always_there():
    assert BACKENDS["einops"] is einops
    assert choose_backend(PAPER_PROBLEM, "einops") == "einops"
    assert choose_backend(PAPER_PROBLEM) in BACKENDS
    assert explain_backends()["einops"] == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_named_backend_gives_what_auto_gives(backend, make_pairs):
    pairs = make_pairs(3, 2, 5, 4, 6, dtype=torch.float32)
    options = PAPER_PROBLEM.options
    problem = Problem.of(pairs.regions, pairs.words, options)
    if reasons := BACKENDS[backend].reasons_not_supported(problem):
        pytest.skip(" ".join(reasons))
    torch.testing.assert_close(
        local_similarity(*pairs, backend=backend), local_similarity(*pairs, backend="auto")
    )


def test_auto_takes_the_first_that_can_run(picky, make_pairs):
    assert choose_backend(PAPER_PROBLEM) != "picky"
    assert choose_backend(PAPER_PROBLEM._replace(words=7)) == "picky"
    assert local_similarity(*make_pairs(2, 2, 5, 7, 3), aggregation="max").eq(42).all()
    assert local_similarity(*make_pairs(2, 2, 5, 6, 3)).ne(42).all()


def test_auto_takes_the_definition_for_tiny_problems_on_a_cpu():
    tiny = PAPER_PROBLEM._replace(images=4, texts=4, words=20, regions=49, dim=64)
    assert choose_backend(tiny) == "einops"
    assert choose_backend(tiny._replace(images=8)) == "chunked"
    assert choose_backend(tiny._replace(dim=768)) == "chunked"
    assert choose_backend(tiny._replace(device="xpu")) == "chunked"
    assert choose_backend(tiny, "chunked") == "chunked"


def test_auto_never_takes_the_interpreter():
    """Triton can run on a CPU in the tests, which set TRITON_INTERPRET; nobody would want it."""
    problem = PAPER_PROBLEM._replace(dtype=torch.float32, device="cpu")
    assert choose_backend(problem) == "chunked"


def test_a_named_backend_that_cannot_run_gives_all_its_reasons(picky, make_pairs):
    with pytest.raises(
        BackendError,
        match=r"backend 'picky' cannot run this: It wants 7 words; got 4. It wants cuda; got cpu.",
    ) as error:
        local_similarity(*make_pairs(2, 2, 5, 4, 3), backend="picky")
    assert isinstance(error.value, GloriaError)
    assert isinstance(error.value, RuntimeError)


def test_explaining_asks_every_backend(picky):
    answers = explain_backends()
    assert next(iter(answers)) == "picky"
    assert answers["picky"] == ["It wants 7 words; got 97.", "It wants cuda; got cpu."]
    assert explain_backends(PAPER_PROBLEM._replace(words=7))["picky"] == []


def test_a_problem_is_read_off_the_tensors(picky, make_pairs, monkeypatch):
    problems = []
    monkeypatch.setattr(
        PICKY, "reasons_not_supported", lambda problem: problems.append(problem) or ["No."]
    )
    pairs = make_pairs(2, 3, 5, 4, 6, dtype=torch.float16)
    local_similarity(*pairs, attention_temperature=0.5, aggregation="max")
    (problem,) = problems
    assert isinstance(problem, Problem)
    assert problem[:5] == (2, 5, 3, 4, 6)
    assert problem.dtype == torch.float16
    assert problem.device == "cpu"
    assert problem.options.attention_temperature == 0.5
    assert problem.options.aggregation == "max"
