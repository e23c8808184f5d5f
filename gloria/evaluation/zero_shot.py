"""Zero-shot classification: an image's class is the one whose prompts it matches best."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gloria.checks import check_choice, check_same_size, check_tensor
from gloria.errors import OptionError
from gloria.evaluation.classification import check_no_nan
from gloria.evaluation.retrieval import check_labels


def class_scores(
    similarity: Tensor, prompt_class: Tensor, reduction: Literal["mean", "max"] = "mean"
) -> Tensor:
    """Each image's score for each class: the mean, or the maximum, over the class's prompts.

    An image's scores depend on nothing but its own similarities.

    Args:
        similarity: ``(image, prompt)``.
        prompt_class: ``(prompt,)`` integers: which class a prompt describes. Classes run from 0,
            and each has a prompt.
        reduction: ``"mean"``, as in the paper, or ``"max"``.

    Returns:
        ``(image, class)``.

    Raises:
        ShapeError: the shapes do not fit.
        DtypeError: ``prompt_class`` does not hold integers.
        OptionError: a class has no prompt, or the reduction is unknown.
        DataError: ``similarity`` holds NaN.

    The published code standardises the similarities over the test batch first, so that an image's
    class depends on the images beside it, and takes the maximum of five randomly drawn prompts.

    Example:
        >>> similarity = torch.tensor([[0.2, 0.4, 0.5]])
        >>> class_scores(similarity, torch.tensor([0, 0, 1]))
        tensor([[0.3000, 0.5000]])
    """
    check_tensor("similarity", similarity, ("image", "prompt"))
    check_labels("prompt_class", prompt_class, "prompt")
    check_choice("reduction", reduction, ("mean", "max"))
    check_same_size("prompts", "similarity", similarity.shape[1], "prompt_class", len(prompt_class))
    check_no_nan("similarity", similarity)
    classes = prompt_class.unique().tolist()
    if not classes or classes != list(range(len(classes))):
        raise OptionError(
            f"prompt_class must number the classes from 0 without a gap; it holds {classes}."
        )
    of_class = [similarity[:, prompt_class == each] for each in classes]
    if reduction == "mean":
        return torch.stack([scores.mean(1) for scores in of_class], dim=1)
    return torch.stack([scores.amax(1) for scores in of_class], dim=1)
