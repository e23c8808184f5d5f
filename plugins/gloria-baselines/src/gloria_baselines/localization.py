"""DSVE's localisation: where an image answers to a text, without attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from gloria import GLoRIA
from gloria.checks import check_integer, check_same_size
from gloria.errors import OptionError


@torch.no_grad()
def localize(model: GLoRIA, images: Tensor, texts: Sequence[str], *, channels: int = 180) -> Tensor:
    """Where each image answers to its text: the pre-pool map, through the image's projection.

    ``H_ij = Σ_{u in K(t)} |t_u| · (A G_ij)_u``: G is the map before pooling, A the weights of the
    linear projection behind it, t the L2-normalised text and K(t) its ``channels`` highest entries.

    Put the model in eval mode first, or dropout and BatchNorm blur the answer.

    Args:
        model: one whose image encoder pools its regions, such as ``"baselines:dsve"``, with a
            linear projection of the image.
        images: ``(pair, channel, height, width)``, normalised as ``image_encoder.image_input``
            says.
        texts: as many, text k for image k.
        channels: how many entries of the text count; published: 180 of 2400.

    Returns:
        ``(pair, grid height, grid width)``; higher = more like the text, and of either sign.
        ``model.lay_over`` brings it onto the image.

    Raises:
        ShapeError: images and texts are not as many.
        OptionError: the model has no such encoder or projection, or the shared space has not so
            many channels.

    Source: Engilberge et al., Finding beans in burgers (CVPR 2018), section 3.3.
    """
    check_same_size("number", "images", len(images), "texts", len(texts))
    encoder = model.image_encoder
    projection = getattr(model.image_head, "layers", model.image_head)
    if not isinstance(projection, nn.Linear) or encoder.region_dim != encoder.pooled_dim:
        raise OptionError(
            "localize needs an image encoder that pools its regions, such as 'baselines:dsve', and "
            f"a linear image_head; got a {type(encoder).__name__} and a "
            f"{type(projection).__name__}."
        )
    check_integer("channels", channels, 1, projection.out_features)
    features = encoder(images)
    answers = linear(features.regions, projection.weight)  # (pair, region, dim)
    vectors = normalize(model.encode_text(texts).pooled, dim=-1)
    strongest = vectors.topk(channels, dim=-1).indices
    weights = torch.zeros_like(vectors).scatter(-1, strongest, vectors.gather(-1, strongest).abs())
    maps: Tensor = (answers @ weights[..., None]).squeeze(-1).unflatten(-1, features.grid)
    return maps
