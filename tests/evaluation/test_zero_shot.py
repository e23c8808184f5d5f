"""Zero-shot scores against loops."""

import pytest
import torch

from gloria.errors import DataError, DtypeError, OptionError, ShapeError
from gloria.evaluation.zero_shot import class_scores

PROMPT_CLASS = torch.tensor([2, 0, 1, 0, 2, 2, 1])


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("images", [0, 1, 11])
@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_scores_equal_a_plain_loop(images, reduction):
    similarity = draw(images, 7)
    scores = class_scores(similarity, PROMPT_CLASS, reduction)
    assert scores.shape == (images, 3)
    for row, expected_row in zip(scores.tolist(), similarity.tolist(), strict=True):
        for c, score in enumerate(row):
            own = [s for s, k in zip(expected_row, PROMPT_CLASS.tolist(), strict=True) if k == c]
            expected = max(own) if reduction == "max" else sum(own) / len(own)
            assert score == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_an_image_scores_the_same_in_any_batch(reduction):
    similarity = draw(64, 7)
    whole = class_scores(similarity, PROMPT_CLASS, reduction)
    alone = torch.cat([class_scores(row[None], PROMPT_CLASS, reduction) for row in similarity])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-6)


def test_the_number_of_prompts_gives_no_class_an_advantage():
    scores = class_scores(torch.full((2, 7), -0.3), PROMPT_CLASS)
    torch.testing.assert_close(scores, torch.full((2, 3), -0.3))


@pytest.mark.parametrize("numbers", [[0, 2, 2], [1, 1, 2], [-1, 0, 1]])
def test_classes_are_numbered_without_a_gap(numbers):
    with pytest.raises(OptionError, match=r"prompt_class must number .* from 0 without a gap"):
        class_scores(draw(2, 3), torch.tensor(numbers))


def test_bad_input_is_named():
    with pytest.raises(ShapeError, match="similarity and prompt_class must agree in prompts"):
        class_scores(draw(2, 5), PROMPT_CLASS)
    with pytest.raises(OptionError, match="reduction must be one of 'mean', 'max'"):
        class_scores(draw(2, 7), PROMPT_CLASS, "sum")
    with pytest.raises(DtypeError, match="prompt_class must be a tensor of integers"):
        class_scores(draw(2, 7), PROMPT_CLASS.float())
    similarity = draw(2, 7)
    similarity[1, 0] = float("nan")
    with pytest.raises(DataError, match="similarity holds NaN, first at image 1"):
        class_scores(similarity, PROMPT_CLASS)
    with pytest.raises(OptionError, match="prompt_class must number"):
        class_scores(draw(2, 0), torch.zeros(0, dtype=torch.long))
