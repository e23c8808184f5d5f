"""What every registered loss promises: precisions, padding, compilation, copies, training."""

import copy
import inspect
import math
import pickle
from collections.abc import Callable
from typing import get_type_hints

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from gloria.catalog import Catalog
from gloria.errors import EmptyTextError, OptionError, ShapeError
from gloria.losses import PairLoss, inputs_of
from gloria.training.randomness import isolated
from gloria.training.small import small_model

LOSSES = [entry.name for entry in Catalog().losses.entries()]
WITH_WORDS = [name for name in LOSSES if "words" in inputs_of(Catalog().create("losses", name, {}))]
WITH_BACKENDS = ["local_contrastive", "filip", "colbert"]
every_loss = pytest.mark.parametrize("name", LOSSES)
every_local_loss = pytest.mark.parametrize("name", WITH_WORDS)

REPORTS = [
    "Small left pleural effusion.",
    "No pneumothorax.",
    "Mild cardiomegaly, no edema.",
    "Opacity in the right upper lobe.",
]


def create(name):
    return Catalog().create("losses", name, {})


@pytest.fixture
def make_inputs(make_pairs):
    """``make_inputs(loss, pairs)``: the tensors that a loss names, by name."""

    def make_inputs(loss, pairs, *, dtype=torch.float32, seed=0):
        regions, words, word_mask, region_mask = make_pairs(
            pairs, pairs, 7, 5, 8, masked_regions=True, dtype=dtype, scale=0.5, seed=seed
        )
        images, texts = make_pairs(pairs, pairs, 1, 1, 11, dtype=dtype, seed=seed + 1)[:2]
        available = {
            "image_embeddings": images[:, 0],
            "text_embeddings": texts[:, 0],
            "regions": regions,
            "words": words,
            "word_mask": word_mask,
            "region_mask": region_mask,
        }
        return {name: available[name] for name in inputs_of(loss)}

    return make_inputs


def with_gradients(function, inputs):
    leaves = {
        name: x.detach().clone().requires_grad_(x.is_floating_point()) for name, x in inputs.items()
    }
    value = function(**leaves)
    floating = [x for x in leaves.values() if x.requires_grad]
    return value, *torch.autograd.grad(value, floating)


@every_loss
@pytest.mark.parametrize("pairs", [1, 2, 7])
def test_a_finite_scalar_that_is_the_weighted_sum_of_its_terms(name, pairs, make_inputs):
    loss = create(name)
    assert isinstance(loss, PairLoss)
    inputs = make_inputs(loss, pairs)
    value, *gradients = with_gradients(loss, inputs)
    assert value.shape == ()
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    terms, weights = loss.terms(**inputs), loss.weights()
    assert set(weights) <= set(terms)
    expected = sum(weights.get(name, 1.0) * term.item() for name, term in terms.items())
    assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_is_the_float64_loss_of_its_inputs(name, dtype, make_inputs):
    loss = create(name)
    inputs = make_inputs(loss, 3, dtype=dtype)
    value = loss(**inputs)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wide = {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()}
    torch.testing.assert_close(value.double(), loss.double()(**wide), rtol=1e-5, atol=1e-6)


@every_loss
@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_no_bit(name, autocast_dtype, make_inputs):
    loss = create(name)
    inputs = make_inputs(loss, 3)
    expected = loss(**inputs)
    with torch.autocast("cpu", autocast_dtype):
        assert torch.equal(loss(**inputs), expected)


@pytest.mark.parametrize(
    "name, silent",
    [(name, part) for name in LOSSES for part in inputs_of(create(name)) if "mask" not in part],
)
def test_a_vector_of_zeros_has_no_gradient_that_drowns_the_others(name, silent, make_inputs):
    """A ReLU may silence an image, a padding index a word."""
    loss = create(name)
    inputs = make_inputs(loss, 3)
    whole = inputs[silent].clone()
    zero = (1, 0) if silent == "words" else (1,)  # of an image all regions
    inputs[silent][zero] = 0.0
    value, *gradients = with_gradients(loss, inputs)
    assert value.isfinite()
    names = [each for each, x in inputs.items() if x.is_floating_point()]
    usual = max(gradient.abs().max() for gradient in gradients)
    own = dict(zip(names, gradients, strict=True))[silent]
    # SPARC and MGCA attend to words, where one of zeros is as good as any: it is pulled at
    limit = 0.0 if name not in ("sparc", "mgca") else usual
    assert own[zero].abs().max() <= limit
    inputs[silent] = whole
    _, *gradients = with_gradients(loss, inputs)
    assert usual < 100 * max(gradient.abs().max() for gradient in gradients)


@every_local_loss
@pytest.mark.parametrize("content", [math.nan, math.inf, 1e30])
def test_padding_has_no_influence_and_no_gradient(name, content, make_inputs):
    loss = create(name)
    inputs = make_inputs(loss, 3)
    padded = {"words": ~inputs["word_mask"], "regions": ~inputs["region_mask"]}
    assert all(mask.any() for mask in padded.values())
    spoiled = inputs | {
        key: inputs[key].masked_fill(mask[..., None], content) for key, mask in padded.items()
    }
    clean, dirty = with_gradients(loss, inputs), with_gradients(loss, spoiled)
    for one, other in zip(clean, dirty, strict=True):
        assert torch.equal(one, other)
    floating = [key for key, x in inputs.items() if x.is_floating_point()]
    gradients = dict(zip(floating, dirty[1:], strict=True))
    for key, mask in padded.items():
        assert gradients[key][mask].eq(0).all()


@every_local_loss
def test_appended_padding_changes_nothing(name, make_inputs):
    loss = create(name).double()
    inputs = make_inputs(loss, 3, dtype=torch.float64)
    longer = dict(inputs)
    for values, mask in (("words", "word_mask"), ("regions", "region_mask")):
        filling = torch.full_like(inputs[values][:, :2], 9.0)
        longer[values] = torch.cat([inputs[values], filling], dim=1)
        longer[mask] = torch.cat([inputs[mask], torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(loss(**longer), loss(**inputs))


@every_loss
def test_the_order_of_the_pairs_does_not_matter(name, make_inputs):
    loss = create(name).double()
    inputs = make_inputs(loss, 5, dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = {key: x[order] for key, x in inputs.items()}
    torch.testing.assert_close(loss(**shuffled), loss(**inputs))


@every_loss
def test_similarity_takes_any_numbers_and_the_loss_takes_pairs(name, make_inputs):
    loss = create(name)
    inputs = make_inputs(loss, 3)
    images = {key: x[:2] for key, x in inputs.items() if key[:2] in ("im", "re")}
    assert 0 < len(images) < len(inputs)
    with pytest.raises(ShapeError, match=r"at least one pair, .* got 2 images and 3 texts"):
        loss(**inputs | images)
    with pytest.raises(ShapeError, match=r"at least one pair, .* got 0 images and 0 texts"):
        loss(**{key: x[:0] for key, x in inputs.items()})
    if hasattr(loss, "similarity"):
        assert loss.similarity(**inputs | images).shape == (2, 3)


@every_local_loss
def test_a_text_without_a_word_is_named(name, make_inputs):
    loss = create(name)
    inputs = make_inputs(loss, 3)
    inputs["word_mask"][1] = False
    with pytest.raises(EmptyTextError, match="text 1 has none in word_mask"):
        loss(**inputs)


@every_loss
def test_is_typed_and_printed_without_weights_too(name):
    """To a type checker a loss is a tensor, not Any; on ``meta``, where weights have no values."""
    loss = create(name)
    assert get_type_hints(type(loss))["__call__"] == Callable[..., torch.Tensor]
    assert repr(loss.to("meta")).startswith(f"{type(loss).__name__}(")


@every_loss
def test_compiles_in_one_graph(name, make_inputs):
    loss = create(name)
    inputs = make_inputs(loss, 3)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for eager, traced in zip(
        with_gradients(loss, inputs), with_gradients(compiled, inputs), strict=True
    ):
        torch.testing.assert_close(traced, eager)


@every_loss
def test_exports_for_any_batch(name, make_inputs):
    loss = create(name)
    inputs = make_inputs(loss, 3)
    pair, word = (torch.export.Dim(axis, min=2, max=64) for axis in ("pair", "word"))
    axes = {key: {0: pair} | ({1: word} if "word" in key else {}) for key in inputs}
    exported = torch.export.export(loss, (), inputs, dynamic_shapes=axes).module()
    others = make_inputs(loss, 7, seed=2)
    torch.testing.assert_close(exported(**others), loss(**others))


@every_loss
def test_a_compiled_backward_is_out_of_autocast_if_torch_is_told(name, make_inputs):
    """By the setting that docs/training-loops.md names."""
    loss = create(name)
    inputs = make_inputs(loss, 3)
    torch.compiler.reset()  # it makes no more than 8 graphs of all losses together
    with torch._functorch.config.patch(backward_pass_autocast="off"):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")

        def under_autocast(**inputs):
            with torch.autocast("cpu", torch.bfloat16):
                return compiled(**inputs)

        found = with_gradients(under_autocast, inputs)
    torch.testing.assert_close(found, with_gradients(loss, inputs))


@every_loss
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is")  # torch's own
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # likewise
def test_linearized_slopes_are_those_of_forward_mode(name, make_inputs):
    """Torch folds what does not depend on the inputs, as if nothing wrote to it later."""
    loss = create(name).double()
    inputs = make_inputs(loss, 3, dtype=torch.float64)
    features = {key: x for key, x in inputs.items() if x.is_floating_point()}

    def value(*features_given):
        return loss(**inputs | dict(zip(features, features_given, strict=True)))

    primals = tuple(features.values())
    generator = torch.Generator().manual_seed(0)
    directions = tuple(torch.randn(x.shape, generator=generator).double() for x in primals)
    _, slopes = torch.func.linearize(value, *primals)
    torch.testing.assert_close(slopes(*directions), torch.func.jvp(value, primals, directions)[1])


@every_loss
@pytest.mark.parametrize("masked_regions", [False, True])
def test_derivatives(name, masked_regions, make_inputs):
    """The first, for what is learned, too, and the second."""
    takes = inspect.signature(type(create(name))).parameters
    learned = {"learnable": True} if "learnable" in takes else {}
    if "local_loss" in takes:
        parts = {key: {"learnable": True} for key in ("global_options", "local_options")}
        learned = {"preset": "official", **parts}
    loss = Catalog().create("losses", name, learned).double()
    inputs = make_inputs(loss, 3, dtype=torch.float64)
    features = {key: x for key, x in inputs.items() if x.is_floating_point()}
    masks = {key: x for key, x in inputs.items() if key not in features}
    assert all(not mask.all() for mask in masks.values())
    if not masked_regions:
        masks.pop("region_mask", None)

    def value(*leaves):
        return loss(**dict(zip(features, leaves, strict=False)), **masks)

    leaves = tuple(x.requires_grad_() for x in features.values())
    assert gradcheck(value, (*leaves, *loss.parameters()), fast_mode=True)
    assert gradgradcheck(value, leaves, fast_mode=True)


@every_loss
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_copies_compute_the_same(name, copied, make_inputs):
    loss = create(name)
    inputs = make_inputs(loss, 3)
    twin = copied(loss)
    assert torch.equal(twin(**inputs), loss(**inputs))
    assert repr(twin) == repr(loss)
    twin.load_state_dict(loss.state_dict())


@every_loss
def test_presets_can_be_made_and_overridden(name):
    for preset in type(create(name)).presets:
        assert Catalog().create("losses", name, {"preset": preset}) is not None
    with pytest.raises(OptionError, match=r"preset must be one of '.*'; got 'published'"):
        type(create(name)).from_preset("published")


@pytest.mark.parametrize("name", WITH_BACKENDS)
def test_a_bad_backend_or_budget_is_named_when_the_loss_is_made(name):
    with pytest.raises(OptionError, match=r"backend must be one of 'auto', .*; got 'fast'"):
        type(create(name))(backend="fast")
    with pytest.raises(OptionError, match="memory_budget must be at least 1; got 0"):
        type(create(name))(memory_budget=0)
    assert "backend='einops'" in repr(type(create(name))(backend="einops"))


@every_loss
def test_trains_a_small_model(name):
    """A few steps on one batch, every part of which the loss uses: it goes down."""
    with isolated(0):
        tiny = {"channels": (8, 8, 16, 16)}
        model = small_model(REPORTS, loss=name, image_options=tiny, embedding_dim=16)
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    values = []
    for step in range(15):
        with isolated(0, step):
            output = model(images, REPORTS)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        values.append(output.loss.item())
    assert all(parameter.grad is not None for parameter in model.loss.parameters())
    assert values[-1] < 0.8 * values[0]
    assert values[-1] < values[7] < values[0]
