"""Zero-shot classification: an image's class is the one whose prompts it matches best.

An image's scores depend on its own features and the prompts, never on the images beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize

from gloria.checks import (
    check_choice,
    check_floating,
    check_positive,
    check_same_size,
    check_tensor,
)
from gloria.data.prompts import PromptSet
from gloria.errors import DataError, DtypeError, OptionError, ShapeError
from gloria.evaluation.classification import check_no_nan
from gloria.evaluation.features import (
    check_features,
    encode_prompts,
    evaluating,
    pair_similarity,
)
from gloria.evaluation.retrieval import check_labels
from gloria.model import GLoRIA
from gloria.types import ImageFeatures

Kind = Literal["global", "local", "both"]
Reduction = Literal["mean", "max", "ensemble"]


def zero_shot_scores(
    model: GLoRIA,
    images: ImageFeatures,
    prompts: Mapping[str, PromptSet | Sequence[str]],
    *,
    kind: Kind | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Each image's score for each class: how well it matches the class's positive prompts.

    Args:
        model: any; evaluated in eval mode, its modes are left as they were.
        images: of :func:`~gloria.evaluation.features.encode_images`.
        prompts: by class, in the order of the columns; a list of texts is a class's prompts, too.
            :func:`~gloria.data.select_prompts` puts them into the order of a data set's classes.
        kind: of similarity, as in :meth:`~gloria.model.GLoRIA.similarity`.
        reduction: over a class's prompts: ``"mean"`` or ``"max"`` of the similarities
            (:func:`class_scores`), or ``"ensemble"``, the similarity with the mean of the
            prompts' embeddings (:func:`ensemble_embeddings`), which is of kind ``"global"``, so for
            a model that trains it.

    Returns:
        ``(image, class)``, on the model's device and without gradients. Of several classes that
        exclude each other, the highest score is the image's class; to say yes or no for each, see
        :func:`zero_shot_probabilities`, or choose thresholds on validation images.

    Raises:
        OptionError: ``kind`` or ``reduction`` is unknown, or they do not go together; a class has
            no prompt.
        DtypeError: ``images`` are no features, or a class's prompts no list of texts.
        DataError: there is no class or no image, or a similarity is NaN.

    Warns:
        UnknownWordWarning: the model's vocabulary lacks words of the prompts.
    """
    return _score(model, images, _positive(prompts), kind, reduction)


def zero_shot_probabilities(
    model: GLoRIA,
    images: ImageFeatures,
    prompts: Mapping[str, PromptSet],
    *,
    temperature: float = 0.1,
    kind: Kind | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The probability of each class by itself, from pairs of positive and negative prompts.

    ``pair_probability(score of the positive prompts, score of the negative prompts)``, class by
    class: an image may have several findings or none. What an image's similarities with all texts
    have in common cancels, so that images can be compared.

    Args as in :func:`zero_shot_scores`, and:
        prompts: each with negative prompts.
        temperature: as in :func:`pair_probability`.

    Returns:
        ``(image, class)`` in [0, 1], on the model's device and without gradients.

    Raises what :func:`zero_shot_scores` raises, and:
        OptionError: a class has no negative prompt, or ``temperature`` is not above 0.
    """
    positive, negative = _positive(prompts), {}
    for name, each in prompts.items():
        negative[name] = each.negative_prompts if isinstance(each, PromptSet) else []
        if not negative[name]:
            raise OptionError(
                f"prompts must hold negative prompts for each class, in a PromptSet; "
                f"{name!r} has none."
            )
    return pair_probability(
        _score(model, images, positive, kind, reduction),
        _score(model, images, negative, kind, reduction),
        temperature,
    )


def class_scores(
    similarity: Tensor, prompt_class: Tensor, reduction: Literal["mean", "max"] = "mean"
) -> Tensor:
    """Each image's score for each class: the mean, or the maximum, over the class's prompts.

    An image's scores depend on nothing but its own similarities.

    Args:
        similarity: ``(image, prompt)``.
        prompt_class: ``(prompt,)`` integers: which class a prompt describes. Classes run from 0,
            and each has a prompt.
        reduction: ``"mean"``, as in the paper, or ``"max"``, which favours classes with many
            prompts.

    Returns:
        ``(image, class)``.

    Raises:
        ShapeError, DtypeError: the shapes do not fit, or ``prompt_class`` does not hold integers.
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
    check_choice("reduction", reduction, ("mean", "max"))
    members = _members(prompt_class, similarity.shape[1], "similarity")
    check_no_nan("similarity", similarity)
    reduce = torch.mean if reduction == "mean" else torch.amax
    return torch.stack([reduce(similarity[:, each], 1) for each in members], dim=1)


def ensemble_embeddings(text_embeddings: Tensor, prompt_class: Tensor) -> Tensor:
    """One embedding for each class: the mean of its prompts' embeddings, each of length one.

    ``e_c = mean over the prompts t of class c of t / ‖t‖``. The cosine with it ranks the images
    of a class as the mean of the cosines does, and weighs classes otherwise: by how much their
    prompts agree.

    Args:
        text_embeddings: pooled, ``(prompt, dim)``.
        prompt_class: ``(prompt,)`` integers, as in :func:`class_scores`.

    Returns:
        ``(class, dim)``, for :func:`~gloria.functional.global_similarity`.

    Errors as in :func:`class_scores`.

    Source: CLIP (Radford et al., 2021), section 3.1.4.

    Example:
        >>> ensemble_embeddings(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
        tensor([[0.5000, 0.5000]])
    """
    check_tensor("text_embeddings", text_embeddings, ("prompt", "dim"))
    members = _members(prompt_class, text_embeddings.shape[0], "text_embeddings")
    units = normalize(text_embeddings, dim=1)
    return torch.stack([units[each].mean(0) for each in members])


def pair_probability(positive: Tensor, negative: Tensor, temperature: float = 0.1) -> Tensor:
    """The probability of a finding, from a score for it and a score against it.

    ``p = exp(positive / τ) / (exp(positive / τ) + exp(negative / τ))``

    Args:
        positive: any shape, such as ``(image, class)``.
        negative: the same shape.
        temperature: τ, in the unit of the scores. It moves no probability across 0.5, and changes
            no order of images, unless it is so small (a twentieth of the scores' difference) that
            probabilities are rounded to 1.

    Returns:
        The shape of ``positive``, in [0, 1].

    Raises:
        ShapeError, DtypeError: the shapes differ, or one is no floating-point tensor.
        OptionError: ``temperature`` is not above 0.
        DataError: a score is NaN or infinite.

    Example:
        >>> pair_probability(torch.tensor([0.3, 0.1]), torch.tensor([0.1, 0.1]))
        tensor([0.8808, 0.5000])
    """
    check_positive("temperature", temperature)
    for name, scores in (("positive", positive), ("negative", negative)):
        check_floating(name, scores)
        if not scores.isfinite().all():
            raise DataError(f"{name} holds NaN or infinity.")
    if positive.shape != negative.shape:
        raise ShapeError(
            f"positive and negative must be of one shape; got {tuple(positive.shape)} and "
            f"{tuple(negative.shape)}."
        )
    return ((positive - negative) / temperature).sigmoid()


def _score(
    model: GLoRIA,
    images: ImageFeatures,
    prompts: Mapping[str, Sequence[str]],
    kind: Kind | None,
    reduction: Reduction,
) -> Tensor:
    """Scores ``(image, class)`` of lists of prompts."""
    check_choice("reduction", reduction, ("mean", "max", "ensemble"))
    check_features("images", images, ImageFeatures)
    for name, given, unit in (("prompts", prompts, "class"), ("images", images.pooled, "image")):
        if not len(given):
            raise DataError(f"{name} must hold at least one {unit}; there is nothing to score.")
    every = [prompt for each in prompts.values() for prompt in each]
    texts = encode_prompts(model, every, stacklevel=4)
    prompt_class = torch.tensor(
        [number for number, each in enumerate(prompts.values()) for _ in each],
        device="cpu",
    )
    if reduction != "ensemble":
        return class_scores(pair_similarity(model, images, texts, kind), prompt_class, reduction)
    if kind not in (None, "global"):
        raise OptionError(f"reduction='ensemble' needs kind='global'; got {kind!r}.")
    if kind is None and model.trained_kind == "local":
        raise OptionError(
            "reduction='ensemble' compares pooled embeddings, which the model's loss does not "
            "train; give another reduction, or kind='global' to compare them all the same."
        )
    classes = ensemble_embeddings(texts.pooled, prompt_class)
    # a cosine does not see lengths; another similarity finds those of the prompts
    lengths = vector_norm(texts.pooled, dim=1)
    classes = classes * class_scores(lengths[None], prompt_class).T
    with evaluating(model):
        scores = model.global_similarity(images.pooled, classes)
    check_no_nan("similarity", scores)
    return scores


def _positive(prompts: Mapping[str, PromptSet | Sequence[str]]) -> dict[str, list[str]]:
    """The positive prompts by class, checked."""
    if not isinstance(prompts, Mapping):
        raise DtypeError(f"prompts must be by class, in a dict; got {type(prompts).__name__}.")
    return {
        name: (each if isinstance(each, PromptSet) else PromptSet(each)).prompts
        for name, each in prompts.items()
    }


def _members(prompt_class: Tensor, prompts: int, name: str) -> list[Tensor]:
    """Which prompts are of each class: their numbers, on the CPU, where nothing waits for them."""
    check_labels("prompt_class", prompt_class, "prompt")
    check_same_size("prompts", name, prompts, "prompt_class", len(prompt_class))
    prompt_class = prompt_class.cpu()
    classes = prompt_class.unique().tolist()
    if not classes or classes != list(range(len(classes))):
        raise OptionError(
            f"prompt_class must number the classes from 0 without a gap; it holds {classes}."
        )
    return [(prompt_class == each).nonzero()[:, 0] for each in classes]
