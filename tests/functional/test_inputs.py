"""What the functions refuse, and what they say then."""

import pytest
import torch

from gloria import functional
from gloria.aggregators import GeM
from gloria.errors import (
    DeviceError,
    DtypeError,
    EmptyImageError,
    EmptyTextError,
    GloriaError,
    OptionError,
    ShapeError,
)
from gloria.functional import (
    global_similarity,
    local_attention,
    local_contrastive_loss,
    local_similarity,
)


def inputs(**changed):
    good = {
        "regions": torch.zeros(2, 4, 3),
        "words": torch.zeros(2, 5, 3),
        "word_mask": torch.ones(2, 5, dtype=torch.bool),
        "region_mask": torch.ones(2, 4, dtype=torch.bool),
    }
    return {**good, **changed}


@pytest.mark.parametrize(
    "changed, error, message",
    [
        (
            {"regions": torch.zeros(3, 8, 2, 2)},
            ShapeError,
            r"regions must be \(image, region, dim\); got \(3, 8, 2, 2\)\. Flatten a feature map "
            r"first: rearrange\(x, 'b d h w -> b \(h w\) d'\)",
        ),
        ({"regions": torch.zeros(4, 3)}, ShapeError, r"regions must be .*; got \(4, 3\)"),
        (
            {"words": torch.zeros(5, 3)},
            ShapeError,
            r"words must be \(text, word, dim\); got \(5, 3\)",
        ),
        (
            {"words": torch.zeros(2, 5, 7)},
            ShapeError,
            "regions and words must agree in dim; got 3 and 7. Project both to one width first",
        ),
        (
            {"word_mask": torch.ones(2, 4, dtype=torch.bool)},
            ShapeError,
            r"word_mask must be \(2, 5\) = \(text, word\); got \(2, 4\)",
        ),
        (
            {"word_mask": torch.ones(2, 5, 1, dtype=torch.bool)},
            ShapeError,
            r"word_mask must be \(text, word\); got \(2, 5, 1\)",
        ),
        (
            {"region_mask": torch.ones(4, 2, dtype=torch.bool)},
            ShapeError,
            r"region_mask must be \(2, 4\) = \(image, region\); got \(4, 2\)",
        ),
        (
            {"word_mask": torch.ones(2, 5)},
            DtypeError,
            r"word_mask must be boolean, True = real; got dtype torch.float32\. Convert 0/1 masks "
            r"with mask.bool\(\)",
        ),
        (
            {"region_mask": torch.ones(2, 4, dtype=torch.int64)},
            DtypeError,
            "region_mask must be boolean, True = real; got dtype torch.int64",
        ),
        (
            {"word_mask": [5, 5]},
            DtypeError,
            r"word_mask must be a tensor \(text, word\); got list",
        ),
        (
            {"regions": torch.zeros(2, 4, 3, dtype=torch.int64)},
            DtypeError,
            "regions must be a floating-point tensor of 16, 32 or 64 bits; got dtype torch.int64",
        ),
        (
            {"words": torch.zeros(2, 5, 3, dtype=torch.complex64)},
            DtypeError,
            "words must be a floating-point tensor of .* bits; got dtype torch.complex64",
        ),
        (
            {"words": torch.zeros(2, 5, 3).to(torch.float8_e4m3fn)},
            DtypeError,
            "words must be a floating-point tensor of .* bits; got dtype torch.float8_e4m3fn",
        ),
        (
            {"regions": torch.zeros(2, 4, 3).to_sparse()},
            DtypeError,
            r"regions must be a dense tensor \(image, region, dim\); got layout torch.sparse_coo",
        ),
        (
            {"word_mask": torch.ones(2, 5, dtype=torch.bool).to_sparse()},
            DtypeError,
            r"word_mask must be a dense tensor \(text, word\); got layout torch.sparse_coo",
        ),
        (
            {"regions": [[0.0]]},
            DtypeError,
            r"regions must be a tensor \(image, region, dim\); got list",
        ),
        (
            {"word_mask": torch.tensor([[True] * 5, [False] * 5])},
            EmptyTextError,
            "every text needs at least one real word; text 1 has none in word_mask. Drop such",
        ),
        (
            {"words": torch.zeros(2, 0, 3), "word_mask": torch.ones(2, 0, dtype=torch.bool)},
            EmptyTextError,
            "text 0 has none",
        ),
        (
            {"region_mask": torch.tensor([[True] * 4, [False] * 4])},
            EmptyImageError,
            "every image needs at least one real region; image 1 has none in region_mask",
        ),
        (
            {"regions": torch.zeros(2, 0, 3), "region_mask": None},
            EmptyImageError,
            r"regions must hold at least one region; got \(2, 0, 3\)",
        ),
        (
            {"attention": "softmax"},
            OptionError,
            "attention must be one of 'regions', 'words_then_regions'; got 'softmax'",
        ),
        (
            {"product": "l2"},
            OptionError,
            "product must be one of 'dot', 'scaled_dot', 'cosine'; got 'l2'",
        ),
        (
            {"attention_temperature": 0.0},
            OptionError,
            "attention_temperature must be a finite number above 0; got 0.0",
        ),
        (  # no backend but one would learn it
            {"attention_temperature": torch.tensor(0.25)},
            DtypeError,
            "attention_temperature must be a number above 0; got",
        ),
    ],
)
def test_bad_input_is_named(changed, error, message):
    assert issubclass(error, GloriaError)
    assert issubclass(error, TypeError if error is DtypeError else ValueError)
    for function in (local_similarity, local_attention, local_contrastive_loss):
        with pytest.raises(error, match=message):
            function(**inputs(**changed))


@pytest.mark.parametrize(
    "changed, error, message",
    [
        ({"aggregation": "sum"}, OptionError, "aggregation must be one of .*; got 'sum'"),
        ({"aggregation": GeM}, OptionError, r"an aggregator; got its class\. Make one: GeM\(\)"),
        (
            {"aggregation": lambda values, mask, dim: values},
            ShapeError,
            r"aggregation must reduce .* to a tensor .*, \(2, 2\); it gave \(2, 2, 5\)",
        ),
        (
            {"aggregation": lambda values, mask, dim: None},
            ShapeError,
            r"aggregation must reduce .* to a tensor .*, \(2, 2\); it gave NoneType",
        ),
        ({"match_temperature": -1}, OptionError, "match_temperature must be .*above 0; got -1"),
        (
            {"match_temperature": True},
            DtypeError,
            "match_temperature must be a number above 0; got True",
        ),
        ({"backend": "cuda"}, OptionError, "backend must be one of 'auto', .*; got 'cuda'"),
    ],
)
def test_bad_options_of_similarity_are_named(changed, error, message):
    for function in (local_similarity, local_contrastive_loss):
        with pytest.raises(error, match=message):
            function(**inputs(**changed))


@pytest.mark.parametrize("moved", ["words", "word_mask", "region_mask"])
@pytest.mark.parametrize(
    "function",
    [
        local_similarity,
        local_attention,
        local_contrastive_loss,
        functional.max_similarity,
        functional.sparse_attention,
    ],
)
def test_a_tensor_that_is_elsewhere_is_named(function, moved):
    given = inputs()
    other = "regions" if moved in ("words", "region_mask") else "words"
    given[moved] = given[moved].to("meta")
    with pytest.raises(DeviceError, match=f"^{moved} must be on the device of {other}, cpu; got m"):
        function(**given)


@pytest.mark.parametrize(
    "function",
    [
        global_similarity,
        functional.global_contrastive_loss,
        functional.soft_target_cross_entropy,
    ],
)
def test_of_two_matrices_the_one_that_is_elsewhere_is_named(function):
    with pytest.raises(DeviceError, match=r"must be on the device of .*, cpu; got meta"):
        function(torch.ones(2, 3), torch.ones(2, 3, device="meta"))


def test_attention_needs_as_many_images_as_texts():
    with pytest.raises(
        ShapeError, match="regions and words must agree in number of pairs; got 2 and 3"
    ):
        local_attention(
            torch.zeros(2, 4, 3), torch.zeros(3, 5, 3), torch.ones(3, 5, dtype=torch.bool)
        )


@pytest.mark.parametrize(
    "images, texts, error, message",
    [
        (
            torch.zeros(3),
            torch.zeros(2, 3),
            ShapeError,
            r"image_embeddings must be \(image, dim\); got \(3,\)",
        ),
        (
            torch.zeros(2, 3),
            torch.zeros(2, 1, 3),
            ShapeError,
            r"text_embeddings must be \(text, dim\); got \(2, 1, 3\)",
        ),
        (
            torch.zeros(2, 3),
            torch.zeros(2, 4),
            ShapeError,
            "image_embeddings and text_embeddings must agree in dim; got 3 and 4",
        ),
        (
            torch.zeros(2, 3).long(),
            torch.zeros(2, 3),
            DtypeError,
            "image_embeddings must be a floating-point tensor",
        ),
        (
            torch.zeros(2, 3),
            None,
            DtypeError,
            r"text_embeddings must be a tensor \(text, dim\); got NoneType",
        ),
    ],
)
def test_bad_embeddings_are_named(images, texts, error, message):
    with pytest.raises(error, match=message):
        global_similarity(images, texts)
    with pytest.raises(error, match=message):
        functional.global_contrastive_loss(images, texts)
