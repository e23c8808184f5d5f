"""The paper's objective: the global and the local contrastive loss together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from gloria.checks import check_choice, check_module, check_options
from gloria.errors import ContractError, OptionError
from gloria.losses.base import (
    LOSS_INPUTS,
    GlobalLocalLoss,
    PairLoss,
    inputs_of,
    is_sum_of_terms,
)
from gloria.losses.global_contrastive import GlobalContrastiveLoss
from gloria.losses.local_contrastive import LocalContrastiveLoss


class GlobalLocalContrastiveLoss(GlobalLocalLoss):
    """``L = global_weight · L_global + local_weight · L_local``: four cross-entropies.

    Args:
        global_loss: default :class:`GlobalContrastiveLoss` with the paper's constants.
        local_loss: default :class:`LocalContrastiveLoss` with the paper's constants.
        global_weight: published: 1.
        local_weight: published: 1.

    Raises:
        ContractError: a part is no loss, or one of something else.

    Presets: ``"paper"``, ``"official"``, ``"stable"``: both parts with the preset of that name.

    At random initialisation the loss is about ``4 ln(batch)``: a good smoke check.

    Source: GLoRIA (Huang et al., ICCV 2021), section 3, the total loss.

    Example:
        >>> import torch
        >>> loss = GlobalLocalContrastiveLoss.from_preset("stable", local_weight=0.5)
        >>> pooled, regions = torch.randn(4, 64), torch.randn(4, 49, 64)
        >>> words, word_mask = torch.randn(4, 9, 64), torch.ones(4, 9, dtype=torch.bool)
        >>> for name in loss.terms(pooled, pooled, regions, words, word_mask):
        ...     print(name)
        global_image_to_text
        global_text_to_image
        local_image_to_text
        local_text_to_image
    """

    presets: ClassVar = {"paper": {}, "official": {}, "stable": {}}

    def __init__(
        self,
        *,
        global_loss: GlobalContrastiveLoss | None = None,
        local_loss: LocalContrastiveLoss | None = None,
        global_weight: float = 1.0,
        local_weight: float = 1.0,
    ) -> None:
        super().__init__(
            GlobalContrastiveLoss() if global_loss is None else global_loss,
            global_weight=global_weight,
            local_weight=local_weight,
        )
        self.local_loss = LocalContrastiveLoss() if local_loss is None else local_loss
        _check_part("global_loss", self.global_loss, LOSS_INPUTS[:2])
        _check_part("local_loss", self.local_loss, LOSS_INPUTS[2:])

    @classmethod
    def from_preset(
        cls,
        preset: str,
        *,
        global_options: Mapping[str, Any] | None = None,
        local_options: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> Self:
        """Both parts with the constants of a named preset, some of them overridden.

        Args:
            preset: ``"paper"``, ``"official"`` or ``"stable"``.
            global_options: keyword arguments of :class:`GlobalContrastiveLoss`, such as
                ``{"learnable": True}``: each part has a temperature of its own.
            local_options: keyword arguments of :class:`LocalContrastiveLoss`, such as
                ``{"backend": "chunked"}``.
            overrides: keyword arguments of this class.

        Raises:
            OptionError: no such preset; the options of a part are no mapping, or the part is given,
                too.
            UnknownOptionError: neither this method nor the class has such an option.
        """
        check_choice("preset", preset, cls.presets)
        check_options(cls.__name__, cls, overrides, "preset", "global_options", "local_options")
        parts: dict[str, Any] = {}
        for name, kind, options in (
            ("global", GlobalContrastiveLoss, global_options),
            ("local", LocalContrastiveLoss, local_options),
        ):
            if not isinstance(options, Mapping | None):
                raise OptionError(
                    f'{name}_options must be a mapping, such as {{"learnable": true}}; got '
                    f"{options!r}."
                )
            if overrides.get(f"{name}_loss") is None:
                parts[f"{name}_loss"] = kind.from_preset(preset, **(options or {}))
            elif options:
                raise OptionError(
                    f"{name}_options are those of a {name}_loss yet to be made; got both."
                )
        return cls(**{**overrides, **parts})

    def local_terms(
        self, regions: Tensor, words: Tensor, word_mask: Tensor, region_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``image_to_text`` and ``text_to_image`` of the local loss, each an unweighted scalar."""
        return self.local_loss.terms(regions, words, word_mask, region_mask)

    def local_weights(self) -> dict[str, float]:
        """The weights of the local loss's two directions."""
        return self.local_loss.weights()


def _check_part(name: str, loss: nn.Module, takes: Sequence[str]) -> None:
    check_module(name, loss)
    if not hasattr(loss, "terms") or not set(inputs_of(loss)) <= set(takes):
        raise ContractError(
            f"{name} must be a loss with terms of {', '.join(takes)} alone; got a "
            f"{type(loss).__name__}."
        )
    if isinstance(loss, PairLoss) and not is_sum_of_terms(loss):
        raise ContractError(
            f"{name} must be the sum of its terms, which are asked for; {type(loss).__name__} "
            f"changes forward alone. Change its terms."
        )
