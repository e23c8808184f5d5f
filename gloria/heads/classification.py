"""An image classifier on an encoder's pooled vector, and the loss of its labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from gloria.aggregators.reductions import widen
from gloria.checks import check_image_encoder, check_integer, check_tensor
from gloria.encoders.freezing import Freezable
from gloria.errors import DtypeError, ShapeError
from gloria.types import ImageEncoder


class LinearHead(nn.Linear):
    r"""A linear layer that standardises its features first, which changes how fast it learns only.

    .. math:: z = W \frac{x - m}{s} + b

    What it can learn is what a linear layer can. But one learning rate serves features of any
    scale, so that encoders are compared by what is in their features: those of an untrained ResNet
    differ so little between images that a plain layer learns next to nothing from them.

    Args:
        in_features: width of the features.
        out_features: number of logits.

    Attributes:
        mean: m, ``(in_features,)``; 0 until :meth:`standardize` is called.
        std: s, ``(in_features,)``; 1 until then.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("std", torch.ones(in_features))

    def reset_parameters(self) -> None:
        """Start anew, as after memory was given to what was made on the meta device."""
        super().reset_parameters()
        if hasattr(self, "mean"):  # not yet when nn.Linear calls this
            self.mean.zero_()
            self.std.fill_(1)

    def standardize(self, features: Tensor) -> None:
        """Take mean and standard deviation from the features ``(image, dim)`` of training images.

        A feature that hardly varies, less than a thousandth of the most varying one, is taken to
        vary by that, so that rounding is not blown up to a signal.

        Raises:
            ShapeError: there is no image, or ``features`` are no vectors.
        """
        check_tensor("features", features, ("image", "dim"))
        if not len(features):
            raise ShapeError(f"features must be of an image at least; got {tuple(features.shape)}.")
        std = features.std(0, correction=0)
        least = 1e-3 * std.amax()
        self.mean.copy_(features.mean(0))
        self.std.copy_(std.clamp(min=least) if least > 0 else torch.ones_like(std))

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(image, out_features)`` of features ``(image, in_features)``."""
        return super().forward((features - self.mean) / self.std)


class ImageClassifier(Freezable):
    """An image encoder and one linear layer on its pooled vector: a logit for each class.

    The pooled vector is the encoder's own, before any projection into the shared space; 2048 wide
    for a ResNet-50. The encoder is held, not copied: give ``copy.deepcopy(encoder)`` to keep yours
    as it is.

    Args:
        image_encoder: with the contract of :class:`~gloria.types.ImageEncoder`, such as
            ``model.image_encoder`` of a trained GLoRIA.
        classes: number of classes. Here it is a number; the names are those of the data
            (``data.classes``), in their order.
        frozen: only the linear layer learns. The encoder gets no gradient and stays in eval mode
            whatever ``train()`` is called, so no statistic of its BatchNorms moves.

    Raises:
        OptionError: ``classes`` is below 1.
        ContractError: ``image_encoder`` is no image encoder.

    The published code's "frozen" encoder is in training mode: its BatchNorms take the statistics
    of every batch, and what is probed is no longer what was pretrained.

    Source: GLoRIA (Huang et al., ICCV 2021), section 4.3.

    Example:
        >>> import torch
        >>> from gloria.encoders import TimmImageEncoder
        >>> encoder = TimmImageEncoder("resnet10t", in_chans=1)
        >>> classifier = ImageClassifier(encoder, 5, frozen=True).train()
        >>> classifier(torch.rand(2, 1, 64, 64)).shape
        torch.Size([2, 5])
        >>> [name for name, p in classifier.named_parameters() if p.requires_grad]
        ['head.weight', 'head.bias']
    """

    def __init__(self, image_encoder: ImageEncoder, classes: int, *, frozen: bool = False) -> None:
        super().__init__()
        check_integer("classes", classes, 1)
        check_image_encoder("image_encoder", image_encoder)
        self.image_encoder: Any = image_encoder
        self.image_input = image_encoder.image_input
        self.classes = int(classes)
        self.head = LinearHead(image_encoder.pooled_dim, self.classes)
        if frozen:
            self.freeze("image_encoder")

    @property
    def frozen(self) -> bool:
        """Whether the encoder is frozen."""
        return "image_encoder" in self._frozen_parts

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(image, class)`` of images, normalised as ``image_input`` says.

        Args:
            images: ``(image, channel, height, width)``.
        """
        logits: Tensor = self.head(self.image_encoder(images).pooled)
        return logits


def multilabel_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
) -> Tensor:
    r"""Binary cross-entropy of every known label; an uncertain one has no influence.

    .. math:: L = - \frac{1}{|K|} \sum_{(i, c) \in K} w_c \left(p_c y_{ic} \log \sigma(z_{ic})
              + (1 - y_{ic}) \log(1 - \sigma(z_{ic}))\right)

    with K the labels that are 0 or 1, w the class weights and p the weights of positives. Where
    every label is uncertain, the loss is 0.

    Args:
        logits: ``(image, class)``.
        labels: ``(image, class)`` of any dtype: 1 positive, 0 negative, -1 uncertain. One above 1,
            or NaN, makes the loss NaN: to look for them would wait for the device.
        class_weight: ``(class,)``, default 1.
        pos_weight: ``(class,)``, what a positive label counts beside a negative one; default 1.
            ``negatives / positives`` balances the two.

    Returns:
        A scalar, of float32 if the logits are of half precision, which cannot add up a batch.

    Raises:
        ShapeError: the shapes do not fit.
        DtypeError: labels or weights are no tensors.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.0, 7.0], [2.0, -1.0]])
        >>> certain = multilabel_loss(logits[:, :1], torch.tensor([[1], [0]]))
        >>> bool(multilabel_loss(logits, torch.tensor([[1, -1], [0, -1]])) == certain)
        True
    """
    check_tensor("logits", logits, ("image", "class"))
    _check_suits("labels", labels, "(image, class)", logits.shape)
    for name, weight in (("class_weight", class_weight), ("pos_weight", pos_weight)):
        if weight is not None:
            _check_suits(name, weight, "(class,)", logits.shape[1:])
    logits = widen(logits)
    known = ~(labels < 0)  # NaN is no uncertain label: it shows in the loss
    targets = labels.clamp(min=0).to(logits.dtype)
    losses = binary_cross_entropy_with_logits(
        logits,
        targets.masked_fill(targets > 1, torch.nan),
        weight=class_weight,
        pos_weight=pos_weight,
        reduction="none",
    )
    # where, not a product: an uncertain label's infinite loss would be NaN times 0
    return losses.where(known, 0).sum() / known.sum().clamp(min=1)


def _check_suits(name: str, value: Any, axes: str, shape: torch.Size) -> None:
    if not isinstance(value, Tensor):
        raise DtypeError(f"{name} must be a tensor; got {type(value).__name__}.")
    if value.shape != shape:
        raise ShapeError(
            f"{name} must be {tuple(shape)} = {axes} as the logits are; got {tuple(value.shape)}."
        )
