"""What the functions ask of their inputs, and how they read them."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.linalg import vector_norm

from gloria.aggregators.reductions import widen
from gloria.checks import check_mask, check_same_device, check_same_size, check_tensor
from gloria.errors import EmptyImageError, EmptyTextError, ShapeError
from gloria.matching.problem import EPS
from gloria.matching.triton_support import capturing

Product = Literal["dot", "scaled_dot", "cosine"]
PRODUCTS: tuple[str, ...] = get_args(Product)

_PROJECT = "Project both to one width first (gloria.heads)."


def check_global(image_embeddings: Tensor, text_embeddings: Tensor) -> None:
    """Require vectors of images and texts, of one width and on one device."""
    check_tensor("image_embeddings", image_embeddings, ("image", "dim"))
    check_tensor("text_embeddings", text_embeddings, ("text", "dim"))
    images, texts = image_embeddings.shape[1], text_embeddings.shape[1]
    check_same_size("dim", "image_embeddings", images, "text_embeddings", texts, _PROJECT)
    check_same_device("text_embeddings", text_embeddings, "image_embeddings", image_embeddings)


def check_local(
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor | None,
    region_mask: Tensor | None,
    needs_word_mask: bool = True,
) -> list[int] | None:
    """Require regions and words of one width, masks that fit, and something real in every item.

    Returns:
        How many real words each text has, where there is a mask that can be read.
    """
    flatten = "Flatten a feature map first: rearrange(x, 'b d h w -> b (h w) d')."
    check_tensor("regions", regions, ("image", "region", "dim"), flatten)
    check_tensor("words", words, ("text", "word", "dim"))
    check_same_size("dim", "regions", regions.shape[2], "words", words.shape[2], _PROJECT)
    check_same_device("words", words, "regions", regions)
    count_real(regions, region_mask, "image", "region", EmptyImageError, False)
    return count_real(words, word_mask, "text", "word", EmptyTextError, needs_word_mask)


def count_real(
    vectors: Tensor,
    mask: Any,
    row: str,
    column: str,
    error: type[EmptyTextError] | type[EmptyImageError],
    needs_mask: bool,
) -> list[int] | None:
    """Require a mask that fits and something real in each row, and count it, where that is told."""
    name = f"{column}_mask"
    if mask is None and not needs_mask:
        if vectors.shape[0] and not vectors.shape[1]:
            raise error(f"{column}s must hold at least one {column}; got {tuple(vectors.shape)}.")
        return None
    check_mask(name, mask, tuple(vectors.shape[:2]), (row, column))
    check_same_device(name, mask, f"{column}s", vectors)
    # a compiler's trace has no values, nor has vmap's, a meta tensor never, and a CUDA graph can't
    # wait for any
    mapped = torch._C._functorch.is_functorch_wrapped_tensor
    if torch.compiler.is_compiling() or mapped(mask) or mask.is_meta or capturing(mask):
        return None
    counts: list[int] = mask.sum(1).tolist()  # a device is read once for both
    if 0 in counts:
        index = counts.index(0)
        raise error(
            f"every {row} needs at least one real {column}; {row} {index} has none in {name}. "
            f"Drop such {row}s, or give them a {column}, before matching."
        )
    return counts


def check_pairs(
    regions: Tensor, words: Tensor, word_mask: Tensor, region_mask: Tensor | None
) -> None:
    """As :func:`check_local`, and there are pairs: text k belongs to image k."""
    check_local(regions, words, word_mask, region_mask)
    check_matched(regions.shape[0], words.shape[0], "regions and words must hold")


def check_square(similarity: Tensor) -> None:
    """Require the pair matrix of as many texts as images."""
    check_tensor("similarity", similarity, ("image", "text"))
    check_matched(*similarity.shape)


def check_matched(images: int, texts: int, what: str = "similarity must be square with") -> None:
    """Require as many texts as images, and one at least."""
    if images != texts or images == 0:
        raise ShapeError(
            f"{what} at least one pair, text k belonging to image k; got {images} images and "
            f"{texts} texts."
        )


def multiplied_vectors(
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor | None,
    region_mask: Tensor | None,
    product: Product,
    keep_half_precision: bool = False,
    masked_words_are_read: bool = True,
    masked_regions_are_read: bool = True,
) -> tuple[Tensor, Tensor]:
    """Regions and words such that every product left is a plain dot, with zeros under masks."""
    dtype = torch.promote_types(regions.dtype, words.dtype)
    if not keep_half_precision:
        dtype = torch.promote_types(dtype, torch.float32)
    if product == "dot":
        word_mask = word_mask if masked_words_are_read else None
        region_mask = region_mask if masked_regions_are_read else None
        regions, words = zero_masked(regions, words, word_mask, region_mask)
    else:
        regions, words = real_vectors(regions, words, word_mask, region_mask)
    if product == "cosine":
        regions, words = to_unit(regions), to_unit(words)
    elif product == "scaled_dot":
        # the cosine r does not see the length of a word vector, only the attention does
        words = words / words.shape[-1] ** 0.5
    return regions.to(dtype), words.to(dtype)


def real_vectors(
    regions: Tensor, words: Tensor, word_mask: Tensor | None, region_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Regions and words, widened, with zeros under the masks."""
    return widen_together(*zero_masked(regions, words, word_mask, region_mask))


def zero_masked(
    regions: Tensor, words: Tensor, word_mask: Tensor | None, region_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Regions and words, with zeros under the masks."""
    if word_mask is not None:
        words = words.masked_fill(~word_mask[..., None], 0.0)
    if region_mask is not None:
        regions = regions.masked_fill(~region_mask[..., None], 0.0)
    return regions, words


def to_unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1; a zero vector (a region that a ReLU silenced) keeps a zero gradient."""
    zero = vector_norm(vectors.detach(), dim=-1, keepdim=True) <= EPS
    # a norm has no second derivative at 0: there, that of something else is taken and left out
    length = vector_norm(vectors.masked_fill(zero, 1.0), dim=-1, keepdim=True)
    scale = length.reciprocal().masked_fill(zero, 0.0)
    # whose squares are beyond the dtype have no length, and no zero vector instead
    unit: Tensor = vectors * scale.masked_fill(length == math.inf, math.nan)
    return unit


def widen_together(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype, float32 or wider."""
    first, second = widen(first), widen(second)
    dtype = torch.promote_types(first.dtype, second.dtype)
    return first.to(dtype), second.to(dtype)
