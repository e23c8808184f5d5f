"""The published computation, written again from its formulas: one caption at a time."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def published() -> SimpleNamespace:
    """``published.local_terms(feature_map, tokens, lengths)`` and ``published.global_terms``.

    Layout there: feature maps ``(image, dim, height, width)``; tokens ``(text, dim, token)`` with
    [CLS] first, then the words, then [SEP] and padding; ``lengths`` counts words plus [CLS].
    """

    def attend(caption: Tensor, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """``(dim, token)`` over all images: context ``(image, token, dim)`` and the maps."""
        regions = feature_map.flatten(2).transpose(1, 2)  # image, region, dim
        over_words = torch.softmax(regions @ caption, dim=2)  # image, region, token
        over_regions = torch.softmax(4.0 * over_words.transpose(1, 2), dim=2)
        return over_regions @ regions, over_regions

    def similarities(
        feature_map: Tensor, tokens: Tensor, lengths: list[int], mean: bool = False
    ) -> Tensor:
        columns = []
        for caption, length in zip(tokens, lengths, strict=True):
            words = caption[:, :length]
            context, _ = attend(words, feature_map)
            dots = (context * words.T).sum(2)
            sizes = context.norm(2, 2) * words.T.norm(2, 1)
            powers = torch.exp(5.0 * (dots / sizes.clamp(min=1e-8)))
            pooled = powers.mean(1) if mean else powers.sum(1)
            columns.append(torch.log(pooled))
        return 10.0 * torch.stack(columns, dim=1)

    def cross_entropies(logits: Tensor) -> tuple[Tensor, Tensor]:
        def direction(rows: Tensor) -> Tensor:
            return -rows.log_softmax(1).diagonal().mean()

        return direction(logits), direction(logits.T)

    def local_terms(*args, **kwargs) -> tuple[Tensor, Tensor]:
        return cross_entropies(similarities(*args, **kwargs))

    def global_terms(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        sizes = images.norm(2, 1)[:, None] @ texts.norm(2, 1)[None]
        return cross_entropies(10.0 * (images @ texts.T) / sizes.clamp(min=1e-8))

    def attention_maps(feature_map: Tensor, tokens: Tensor, lengths: list[int]) -> list[Tensor]:
        """Of caption i on image i: ``(token, height, width)``, as many tokens as it has."""
        return [
            attend(tokens[i, :, :length], feature_map[i : i + 1])[1][0].unflatten(
                1, feature_map.shape[2:]
            )
            for i, length in enumerate(lengths)
        ]

    return SimpleNamespace(
        local_terms=local_terms,
        global_terms=global_terms,
        attention_maps=attention_maps,
    )
