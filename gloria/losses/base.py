"""What the losses share: named presets, named terms, and the inputs a loss may ask for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from gloria.checks import check_choice
from gloria.errors import OptionError

LOSS_INPUTS = (
    "image_embeddings",
    "text_embeddings",
    "regions",
    "words",
    "word_mask",
    "region_mask",
)
"""The tensors a registered loss can name as arguments of its ``forward``; it gets those it names.

Shapes: ``(image, dim)``, ``(text, dim)``, ``(image, region, dim)``, ``(text, word, dim)``,
``(text, word)``, ``(image, region)`` or None.
"""


class PairLoss(nn.Module):
    """A loss on matching image-text pairs: a weighted sum of named terms.

    Subclasses define :meth:`terms`, and :meth:`weights` where they are not all 1.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> Self:
        """The loss with the constants of a named preset, some of them overridden.

        Raises:
            OptionError: no such preset.
        """
        check_choice("preset", preset, cls.presets)
        return cls(**{**cls.presets[preset], **overrides})

    def terms(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The named parts of the loss, each an unweighted scalar."""
        raise NotImplementedError

    def weights(self) -> dict[str, float]:
        """The weight of each term that is not 1."""
        return {}

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss from its terms: their weighted sum."""
        weights = self.weights()
        parts = [weights.get(name, 1.0) * term for name, term in terms.items()]
        return sum(parts[1:], start=parts[0])


def inputs_of(loss: nn.Module) -> tuple[str, ...]:
    """Which of :data:`LOSS_INPUTS` a loss's ``forward`` takes.

    Raises:
        OptionError: ``forward`` requires an argument that is not one of them.
    """
    parameters = inspect.signature(loss.forward).parameters.values()
    for parameter in parameters:
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if required and parameter.name not in LOSS_INPUTS:
            raise OptionError(
                f"loss {type(loss).__name__} asks for {parameter.name!r}; what a loss can ask for "
                f"is {', '.join(LOSS_INPUTS)}."
            )
    return tuple(each.name for each in parameters if each.name in LOSS_INPUTS)
