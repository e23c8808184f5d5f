"""What the losses share: named presets, named terms, and the inputs a loss may ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, TypeGuard

from torch import Tensor, nn

from gloria.checks import check_choice, check_integer, check_options, check_weight
from gloria.errors import ContractError, OptionError, describe
from gloria.functional import contrastive_cross_entropy
from gloria.losses.temperature import Temperature
from gloria.matching.maxsim import MAXSIM_BACKENDS
from gloria.signatures import signature_of
from gloria.wrapping import unwrapped

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
``(text, word)``, ``(image, region)`` or None. Text k belongs to image k; the masks are boolean,
True = real, and without a ``region_mask`` all regions are.
"""


class PairLoss(nn.Module):
    """A loss on matching image-text pairs: a weighted sum of named terms.

    Subclasses define :meth:`terms`, which names the tensors it wants, and :meth:`weights` where
    they are not all 1. One that changes ``forward`` alone is called as it is, instead: see
    :func:`is_sum_of_terms`. Of a loss that is a sum of terms the terms are asked for, so that hooks
    on it, and compiling it alone by ``loss.compile()``, have no effect within a model.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    _shown: ClassVar[tuple[str, ...]] = ()
    """The attributes that ``print`` shows."""
    _is_sum_of_terms: ClassVar[bool] = True
    __call__: Callable[..., Tensor]  # to type checkers; nn.Module says Any

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # once, here: a compiler does not trace through what classes define
        defined = (vars(each).keys() & {"forward", "terms"} for each in cls.__mro__)
        cls._is_sum_of_terms = "terms" in next(filter(None, defined))

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> Self:
        """The loss with the constants of a named preset, some of them overridden.

        Raises:
            OptionError: no such preset.
            UnknownOptionError: the loss has no such option.
        """
        check_choice("preset", preset, cls.presets)
        options = {**cls.presets[preset], **overrides}
        check_options(cls.__name__, cls, options)
        return cls(**options)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, a scalar, of what :meth:`terms` takes."""
        return self.total(self.terms(*args, **kwargs))

    def terms(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The named parts of the loss, each an unweighted scalar; at least one."""
        raise NotImplementedError(f"{type(self).__name__} must define terms(...), named scalars")

    def weights(self) -> dict[str, float]:
        """The weight of each term that is not 1; a term may be missing at times."""
        return {}

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss from its terms: their weighted sum."""
        if not isinstance(terms, Mapping) or not terms:
            raise ContractError(
                f"terms of {type(self).__name__} must be scalars by name, at least one; got "
                f"{describe(terms)}."
            )
        weights = self.weights()
        parts = [weights.get(name, 1.0) * term for name, term in terms.items()]
        return sum(parts[1:], start=parts[0])

    def extra_repr(self) -> str:
        shown = {name: getattr(self, name) for name in self._shown if name not in self._modules}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def is_sum_of_terms(loss: nn.Module) -> TypeGuard[PairLoss]:
    """Whether a loss is taken for the weighted sum of its terms, which are asked for instead of it.

    Not if a class changes ``forward`` and leaves ``terms`` as it inherits them.
    """
    return isinstance(loss, PairLoss) and loss._is_sum_of_terms


class SimilarityLoss(PairLoss):
    """Symmetric InfoNCE on a pair matrix: ``w_it · CE(S / τ, rows) + w_ti · CE(S / τ, columns)``.

    Subclasses define ``terms``, by :meth:`terms_of` of a ``similarity(...) -> (image, text)``.

    Args:
        temperature: τ, divides the similarity.
        learnable: learn τ, starting from ``temperature``.
        minimum_temperature: lower bound of a learned τ.
        image_to_text_weight: w_it.
        text_to_image_weight: w_ti.
    """

    _shown: ClassVar[tuple[str, ...]] = ("image_to_text_weight", "text_to_image_weight")

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        learnable: bool = False,
        minimum_temperature: float = 0.01,
        image_to_text_weight: float = 1.0,
        text_to_image_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_weight("image_to_text_weight", image_to_text_weight)
        check_weight("text_to_image_weight", text_to_image_weight)
        self.temperature = Temperature(
            temperature, learnable=learnable, minimum=minimum_temperature
        )
        self.image_to_text_weight = image_to_text_weight
        self.text_to_image_weight = text_to_image_weight

    def terms_of(self, similarity: Tensor, positives: Tensor | None = None) -> dict[str, Tensor]:
        """``image_to_text`` and ``text_to_image`` of a pair matrix, each an unweighted scalar.

        ``positives`` as in :func:`~gloria.functional.contrastive_cross_entropy`.
        """
        return contrastive_cross_entropy(similarity, self.temperature(), positives)._asdict()

    def weights(self) -> dict[str, float]:
        """The weights of the two directions."""
        return {
            "image_to_text": self.image_to_text_weight,
            "text_to_image": self.text_to_image_weight,
        }


class GlobalLocalLoss(PairLoss):
    """``global_weight · L_global + local_weight · L_local``.

    The first compares whole images with whole texts, the second regions with words. Subclasses
    define :meth:`local_terms` and :meth:`local_weights`.

    Args:
        global_loss: takes ``image_embeddings`` and ``text_embeddings``.
        global_weight: of the global loss.
        local_weight: of the local loss.
    """

    _shown: ClassVar[tuple[str, ...]] = ("global_weight", "local_weight")
    local_terms: Callable[..., dict[str, Tensor]]
    """Of regions, words and masks the named terms of the local part, each an unweighted scalar."""
    local_weights: Callable[[], dict[str, float]]
    """The weight of each local term within the local part."""

    def __init__(
        self, global_loss: SimilarityLoss, *, global_weight: float, local_weight: float
    ) -> None:
        super().__init__()
        self.global_loss = global_loss
        check_weight("global_weight", global_weight)
        check_weight("local_weight", local_weight)
        self.global_weight = global_weight
        self.local_weight = local_weight

    def forward(
        self,
        image_embeddings: Tensor,
        text_embeddings: Tensor,
        regions: Tensor,
        words: Tensor,
        word_mask: Tensor,
        region_mask: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            image_embeddings: ``(image, dim)``.
            text_embeddings: ``(text, dim)``, text k belonging to image k.
            regions: ``(image, region, dim)``; this dim may differ from the embeddings'.
            words: ``(text, word, dim)``.
            word_mask: ``(text, word)`` boolean, True = a real word.
            region_mask: ``(image, region)`` boolean, or None: all regions are real.
        """
        return self.total(
            self.terms(image_embeddings, text_embeddings, regions, words, word_mask, region_mask)
        )

    def terms(
        self,
        image_embeddings: Tensor,
        text_embeddings: Tensor,
        regions: Tensor,
        words: Tensor,
        word_mask: Tensor,
        region_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The unweighted terms of both parts, named ``global_...`` and ``local_...``."""
        whole = self.global_loss.terms(image_embeddings, text_embeddings)
        return self.join(whole, self.local_terms(regions, words, word_mask, region_mask))

    def join(self, whole: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms of the loss from those of the global and the local part."""
        return {f"global_{name}": term for name, term in whole.items()} | {
            f"local_{name}": term for name, term in parts.items()
        }

    def weights(self) -> dict[str, float]:
        """The weight of each term: its part's weight times its weight within that part."""
        whole, parts = self.global_loss.weights().items(), self.local_weights().items()
        return {f"global_{name}": self.global_weight * weight for name, weight in whole} | {
            f"local_{name}": self.local_weight * weight for name, weight in parts
        }


class RegionWordLoss(SimilarityLoss):
    """Symmetric InfoNCE on a similarity of regions and words; subclasses define that."""

    similarity: Callable[..., Tensor]
    """Of every image with every text, ``(image, text)``; their numbers may differ."""

    def forward(
        self, regions: Tensor, words: Tensor, word_mask: Tensor, region_mask: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            regions: ``(image, region, dim)``.
            words: ``(text, word, dim)``, text k belonging to image k.
            word_mask: ``(text, word)`` boolean, True = a real word.
            region_mask: ``(image, region)`` boolean, or None: all regions are real.
        """
        return self.total(self.terms(regions, words, word_mask, region_mask))

    def terms(
        self, regions: Tensor, words: Tensor, word_mask: Tensor, region_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``image_to_text`` and ``text_to_image``, each an unweighted scalar."""
        return self.terms_of(self.similarity(regions, words, word_mask, region_mask))


class LateInteractionLoss(RegionWordLoss):
    """Symmetric InfoNCE on a hard maximum over regions or words.

    Args:
        backend: ``"auto"`` or the name of a backend of :mod:`gloria.matching.maxsim`.
        memory_budget: as in :func:`~gloria.functional.max_similarity`.
        rest: of :class:`SimilarityLoss`.
    """

    _shown = (*RegionWordLoss._shown, "backend")

    def __init__(self, *, backend: str, memory_budget: int | None, **rest: Any) -> None:
        super().__init__(**rest)
        check_choice("backend", backend, ("auto", *MAXSIM_BACKENDS))
        if memory_budget is not None:
            check_integer("memory_budget", memory_budget, 1)
        self.backend = backend
        self.memory_budget = memory_budget


def call_signature(loss: nn.Module) -> inspect.Signature:
    """How a loss is called: as its ``forward``, or as its ``terms`` where that is inherited."""
    if isinstance(loss, PairLoss) and type(loss).forward is PairLoss.forward:
        return signature_of(loss.terms)
    return signature_of(loss.forward)


def inputs_of(loss: nn.Module) -> tuple[str, ...]:
    """Which of :data:`LOSS_INPUTS` a loss's ``forward`` takes, or that of the loss it wraps.

    Raises:
        OptionError: ``forward`` requires an argument that is not one of them, or names none.
    """
    # a compiled module takes (*args, **kwargs)
    parameters = call_signature(unwrapped(loss)).parameters.values()
    named = tuple(each.name for each in parameters if each.name in LOSS_INPUTS)
    fault = "" if named else "names nothing that it takes in its forward, so it would get nothing"
    for each in parameters:
        is_open = each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        if each.default is each.empty and not is_open and each.name not in LOSS_INPUTS:
            fault = f"asks for {each.name!r}"
    if fault:
        raise OptionError(
            f"loss {type(loss).__name__} {fault}; what a loss can ask for is "
            f"{', '.join(LOSS_INPUTS)}."
        )
    return named
