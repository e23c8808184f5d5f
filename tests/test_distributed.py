"""Losses across ranks: two and three real processes against one that has the whole batch.

Run as a script this file is one rank: ``python test_distributed.py rank folder``.
"""

import copy
import functools
import itertools
import os
import pickle
import subprocess
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gloria.catalog import Catalog
from gloria.distributed import AcrossRanks, gather, gather_batch
from gloria.errors import (
    ContractError,
    DeviceError,
    DtypeError,
    EmptyImageError,
    EmptyTextError,
    OptionError,
    ShapeError,
)
from gloria.losses import (
    GlobalLocalContrastiveLoss,
    LocalContrastiveLoss,
    SoftTargetContrastiveLoss,
    inputs_of,
)
from gloria.training.randomness import isolated
from gloria.training.small import small_model

LOSSES = [entry.name for entry in Catalog().losses.entries()]
PAIRS = {2: (3, 2), 3: (3, 1, 2)}
"""By number of ranks: the pairs of each."""
WORDS = (5, 7, 4)
"""By rank: the longest of its texts."""


class Labelled(nn.Module):
    """A loss of somebody else: no PairLoss, an input that gloria does not know, a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.soft = SoftTargetContrastiveLoss.from_preset("paper")

    def forward(self, image_embeddings, text_embeddings, labels, factor=1.0):
        shared = labels @ labels.T
        return factor * self.soft(self.scale * image_embeddings, text_embeddings.sin(), shared)


class Squared(LocalContrastiveLoss):
    """Its terms are not those of its pair matrix, so rows would be wrong."""

    def terms(self, *args, **kwargs):
        return {name: term**2 for name, term in super().terms(*args, **kwargs).items()}


class Scaled(LocalContrastiveLoss):
    """Not the sum of its terms: it changes what is made of them."""

    def forward(self, regions, words, word_mask, region_mask=None):
        return 100 * super().forward(regions, words, word_mask, region_mask)


MAKERS = {
    **{name: functools.partial(Catalog().create, "losses", name, {}) for name in LOSSES},
    "learned": lambda: GlobalLocalContrastiveLoss.from_preset(
        "stable", global_options={"learnable": True}, local_options={"learnable": True}
    ),
    "labelled": Labelled,
    "squared": Squared,
    "scaled": Scaled,
    "squared_part": lambda: GlobalLocalContrastiveLoss(local_loss=Squared(), local_weight=0.5),
}
WITHOUT_TERMS = ("labelled", "scaled")
CASES = [
    (name, masked)
    for name in MAKERS
    for masked in ((False, True) if name in LOSSES or name == "learned" else (True,))
]


def make_loss(name):
    return MAKERS[name]().double()


def make_parts(name, world, masked):
    """What each rank has, made alike everywhere: captions as long as the longest of the rank."""
    generator = torch.Generator().manual_seed(world)
    parts = []
    for pairs, longest in zip(PAIRS[world], WORDS, strict=False):

        def normal(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        lengths = torch.randint(1, longest + 1, (pairs, 1), generator=generator)
        lengths[0] = longest
        available = {
            "image_embeddings": normal(pairs, 6),
            "text_embeddings": normal(pairs, 6),
            "labels": normal(pairs, 3),
            "regions": normal(pairs, 4, 5) * 0.5,
            "words": normal(pairs, longest, 5) * 0.5,
            "word_mask": torch.arange(longest) < lengths,
            "region_mask": torch.arange(4) < torch.randint(1, 5, (pairs, 1), generator=generator),
        }
        names = [*inputs_of(MAKERS[name]())] if name != "labelled" else [*available][:3]
        parts.append({key: available[key] for key in names if masked or key != "region_mask"})
    return parts


def joined(parts):
    """The batch of one process: texts padded to the longest by hand."""
    longest = max(part["words"].shape[1] for part in parts) if "words" in parts[0] else 0

    def padded(name, value):
        if name not in ("words", "word_mask"):
            return value
        filled = value.new_zeros(value.shape[0], longest, *value.shape[2:])
        filled[:, : value.shape[1]] = value
        return filled

    return {name: torch.cat([padded(name, part[name]) for part in parts]) for name in parts[0]}


def learn(loss, inputs):
    """Value, terms, and the gradients of inputs and parameters."""
    leaves = {
        name: x.clone().requires_grad_(x.is_floating_point() and name != "labels")
        for name, x in inputs.items()
    }
    value = loss(**leaves)
    value.backward()
    terms = loss.terms(**leaves) if hasattr(loss, "terms") else {}
    return {
        "value": value.detach(),
        "terms": {name: term.detach() for name, term in terms.items()},
        "inputs": {name: x.grad for name, x in leaves.items() if x.requires_grad},
        "parameters": {name: p.grad for name, p in loss.named_parameters()},
    }


# ---------------------------------------------------------------- what a rank does


def rank_cases(world, rank):
    found = {}
    for name, masked in CASES:
        loss = AcrossRanks(make_loss(name))
        found[name, masked] = learn(loss, make_parts(name, world, masked)[rank])
    return found


FAULTS = {
    "no pair": (ShapeError, "this one gave .*0 regions, 0 words"),
    "fewer texts": (ShapeError, "this one gave .*(2 regions, 1|1 regions, 0) words"),
    "region mask": (OptionError, "region_mask must be a tensor on every rank.*none on rank 1 of"),
    "regions": (ShapeError, r"regions must agree .*got \(4, 5\) on rank 0 and \(3, 5\) on rank 1"),
    "axes": (ShapeError, "regions must agree between ranks in number of axes; got 3 .* and 4"),
    "dtype": (DtypeError, "regions must agree .* torch.float64 on rank 0 and torch.float32"),
    "device": (DeviceError, "words must agree .* in kind of device; got cpu on rank 0 and meta on"),
    "gradient": (OptionError, "words must agree between ranks in need of a gradient"),
    "no word": (EmptyTextError, "text 0 has none in word_mask"),
    "no region": (EmptyImageError, "image 0 has none in region_mask"),
    "width": (ShapeError, "regions and words must agree in dim; got 5 and 4"),
    "list": (OptionError, "only tensors are gathered between ranks; regions is a list"),
    # as long as each other only once all are padded
    "swapped": (ShapeError, r"word_mask must be \(\d, \d\) = \(text, word\); got \(\d, \d\)"),
    "no mask": (ShapeError, r"words must .* no word_mask tells .* \(5, 5\) on rank 0 and \(7, 5\)"),
    "no axis": (ShapeError, r"word_mask must be \(text, word\); got"),
}
OWN_FAULTS = {
    "a list": (OptionError, "only tensors are gathered between ranks; regions is a list"),
    "missing": (TypeError, "missing a required argument: 'words'"),
    "unknown": (TypeError, "got an unexpected keyword argument 'nonsense'"),
}
"""Those that rank 1 alone can see: others are told."""


def spoil(fault, inputs, rank):
    if fault == "width":  # on all ranks: the loss's own check
        return inputs | {"words": inputs["words"][..., :4]}
    if fault == "list":
        return inputs | {"regions": inputs["regions"].tolist()}
    if fault == "no mask":
        return inputs | {"word_mask": None}
    if fault == "no axis":
        return inputs | {"word_mask": inputs["word_mask"][:, 0]}
    if fault == "swapped" and rank < 2:
        lengths = (7, 5)[rank]
        return inputs | {"word_mask": torch.ones(len(inputs["words"]), lengths, dtype=torch.bool)}
    if rank != 1:
        return inputs
    empty = {name: inputs[name].clone() for name in ("word_mask", "region_mask")}
    for mask in empty.values():
        mask[0] = False
    changes = {
        "no pair": lambda: {name: x[:0] for name, x in inputs.items()},
        "fewer texts": lambda: {name: inputs[name][:-1] for name in ("words", "word_mask")},
        "region mask": lambda: {"region_mask": None},
        "regions": lambda: {name: inputs[name][:, :3] for name in ("regions", "region_mask")},
        "axes": lambda: {"regions": inputs["regions"][..., None]},
        "dtype": lambda: {"regions": inputs["regions"].float()},
        "device": lambda: {name: inputs[name].to("meta") for name in ("words", "word_mask")},
        "gradient": lambda: {"words": inputs["words"].clone().requires_grad_()},
        "no word": lambda: {"word_mask": empty["word_mask"]},
        "no region": lambda: {"region_mask": empty["region_mask"]},
        "a list": lambda: {"regions": inputs["regions"].tolist()},
        "unknown": lambda: {"nonsense": inputs["words"]},
    }
    if fault == "missing":
        return {name: x for name, x in inputs.items() if name != "words"}
    return inputs | changes[fault]()


def rank_faults(world, rank):
    found = {}
    for kind in ("local_contrastive", "mgca"):
        inputs = make_parts(kind, world, True)[rank]
        for fault in FAULTS | OWN_FAULTS:
            loss = AcrossRanks(make_loss(kind))
            found[kind, fault] = raised(loss, **spoil(fault, inputs, rank))
    words = torch.ones(1, rank + 1, 3)
    found["unmasked"] = raised(gather_batch, {"words": words})
    labelled = make_parts("labelled", world, True)[rank]
    found["number"] = raised(AcrossRanks(make_loss("labelled")), **labelled, factor=rank)
    found["alone"] = raised(gather, [1.0] if rank == 1 else torch.ones(1))
    return found


def raised(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return type(error), str(error)
    return None, ""


def rank_gather(world, rank):
    """Uneven, even empty, rows of several kinds, and a gradient that differs by rank."""
    numbers = torch.arange(rank * 3.0).reshape(rank, 3) + 10 * rank
    numbers.requires_grad_()
    whole = gather(numbers)
    ((rank + 1) * whole).sum().backward()
    with torch.no_grad():
        quiet = gather(numbers)
    lengths = {"words": torch.ones(2, rank + 1, 3), "word_mask": torch.ones(2, rank + 1) > 0}
    batch = gather_batch({**lengths, "labels": torch.tensor([rank])})
    return {
        "part of the gradient": numbers.grad.untyped_storage().nbytes(),
        "whole": whole.detach(),
        "needs gradient": (whole.requires_grad, quiet.requires_grad),
        "gradient": numbers.grad,
        "truth": gather(torch.tensor([rank == 1])),
        "batch": batch,
        "twice": refuses_second_derivative(numbers),
        "nothing": nothing_gathered(),
        "half": {dtype: half_gradient(dtype, world, rank) for dtype in HALF},
    }


def nothing_gathered():
    none = torch.ones(0, 3, requires_grad=True)
    whole = gather(none)
    whole.sum().backward()
    return whole.detach(), none.grad


HALF = {torch.bfloat16: (256.0, 1.0, 1.0), torch.float16: (60000.0, 60000.0, -60000.0)}
"""What three ranks send: 258, or 256 where a 1 is rounded away; 60000, or inf on the way."""


def half_gradient(dtype, world, rank):
    """Of one row per rank, whose columns have the three numbers in every order."""
    sent = torch.tensor([*itertools.permutations(HALF[dtype])]).T[rank].to(dtype)
    row = torch.zeros(1, 6, dtype=dtype, requires_grad=True)
    gather(row).backward(sent.expand(world, 6))
    return row.grad


def refuses_second_derivative(numbers):
    (first,) = torch.autograd.grad((gather(numbers) ** 2).sum(), numbers, create_graph=True)
    try:
        first.sum().backward()
    except RuntimeError as error:
        return str(error)
    return ""


def rank_rows(world, rank):
    """How large a pair matrix each rank computes."""
    loss = make_loss("global_local_contrastive")
    similarity, shapes = loss.local_loss.similarity, []

    def watched(*args, **kwargs):
        matrix = similarity(*args, **kwargs)
        shapes.append(tuple(matrix.shape))
        return matrix

    loss.local_loss.similarity = watched
    AcrossRanks(loss)(**make_parts("global_local_contrastive", world, True)[rank])
    return shapes


class Tiny(nn.Module):
    """What somebody's own training step looks like: encoders, and the loss as a part of it."""

    def __init__(self, loss):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.image, self.text = nn.Linear(6, 5).double(), nn.Linear(5, 5).double()
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.loss = loss

    def forward(self, image_embeddings, text_embeddings, regions, words, word_mask, region_mask):
        return self.loss(
            self.image(image_embeddings),
            self.image(text_embeddings),
            self.text(regions),
            self.text(words),
            word_mask,
            region_mask,
        )


def rank_ddp(world, rank):
    model = Tiny(AcrossRanks(make_loss("learned")))
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    value = ddp(**make_parts("learned", world, True)[rank])
    value.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    return {"value": value.detach(), "gradients": gradients, "state": model.state_dict()}


def rank_fsdp(world, rank):
    """The gradient of each parameter, put together from the parts that ranks have."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = Tiny(AcrossRanks(make_loss("learned")))
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    shown = repr(model) if rank == 1 else ""  # on one rank: nothing may wait for the others
    value = model(**make_parts("learned", world, True)[rank])
    value.backward()
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters()}

    biased = AcrossRanks(make_loss("sigmoid"))
    fully_shard(biased, mesh=init_device_mesh("cpu", (world,)))
    biased(**make_parts("sigmoid", world, True)[rank]).backward()
    return {
        "value": value.detach(),
        "gradients": gradients,
        "shown": shown,
        "bias": biased.loss.bias.grad.full_tensor(),
    }


def rank_quiet(world, rank):
    """No graph, as in validation: value and whether it has one."""
    found = {}
    for name in ("learned", "mgca", "labelled"):
        with torch.no_grad():
            value = AcrossRanks(make_loss(name))(**make_parts(name, world, True)[rank])
        found[name] = value, value.requires_grad
    return found


def rank_compiled(world, rank):
    if world > 2:
        return None  # compiling takes seconds
    warnings.simplefilter("ignore")  # the compiler's own, where it hands back to Python
    loss = make_loss("learned")
    inputs = make_parts("learned", world, True)[rank]
    compiled = torch.compile(AcrossRanks(loss), backend="eager")
    mask = torch.compile(gather)(inputs["word_mask"][:, :3])  # by Inductor, whose own fault it was
    plain = torch.compile(AcrossRanks(make_loss("global_contrastive")), backend="eager")
    unmasked = learn(plain, make_parts("global_contrastive", world, False)[rank])
    learned = learn(compiled, inputs)
    return learned, raised(compiled, **spoil("no word", inputs, rank)), mask, unmasked


def rank_alone(world, rank):
    """Whether a group of one changes a bit."""
    assert dist.is_initialized()
    inputs = make_parts("learned", 2, True)[0]
    plain, across = make_loss("learned"), AcrossRanks(make_loss("learned"))
    same = torch.equal(plain(**inputs), across(**inputs))
    return same and gather(inputs["words"]) is inputs["words"]


def rank_group(world, rank):
    """The last two ranks are a group; to one before them it is none."""
    first = world - 2
    pair = dist.new_group([first, first + 1])
    inputs = make_parts("learned", world, True)[rank]
    if rank < first:
        made = raised(AcrossRanks, make_loss("learned"), pair)
        return [made, raised(gather, inputs["words"], pair)]
    learned = learn(AcrossRanks(make_loss("learned"), pair), inputs)
    mgca, place = AcrossRanks(make_loss("mgca"), pair), rank - first
    inputs = make_parts("mgca", 2, True)[place]
    told = raised(mgca, **spoil("a list", inputs, place))
    return learned, learn(mgca, inputs), told, gather(torch.tensor([rank]), pair)


JOBS = {
    "group": rank_group,
    "cases": rank_cases,
    "faults": rank_faults,
    "gather": rank_gather,
    "rows": rank_rows,
    "ddp": rank_ddp,
    "fsdp": rank_fsdp,
    "quiet": rank_quiet,
    "compiled": rank_compiled,
}


def run_rank(rank, folder):
    """All jobs, among three ranks and then among the first two; one job alone."""
    for world in (3, 2, 1):
        if rank >= world:
            return
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/{world}.meeting",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=60),
        )
        found = {}
        for name, job in JOBS.items() if world > 1 else [("alone", rank_alone)]:
            try:
                found[name] = job(world, rank)
            except Exception:
                found[name] = traceback.format_exc()
                break  # the others are at another collective now
        torch.save(found, folder / f"{world}-{rank}.pt")
        dist.destroy_process_group()


# ---------------------------------------------------------------- what pytest does


@pytest.fixture(scope="module")
def everyone(tmp_path_factory):
    """``everyone(world, job)``: what each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "error", __file__]
    with (folder / "log").open("w") as log:
        ranks = [
            subprocess.Popen([*command, str(rank), str(folder)], env=environment, stderr=log)
            for rank in range(3)
        ]
        try:
            codes = [rank.wait(timeout=120) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    assert codes == [0, 0, 0], (folder / "log").read_text()

    @functools.cache
    def load(world):
        files = [folder / f"{world}-{rank}.pt" for rank in range(world)]
        return [torch.load(file, weights_only=False) for file in files]

    def everyone(world, job):
        every = [found.get(job, "an earlier job failed") for found in load(world)]
        for found in every:
            assert not isinstance(found, str), found
        return every

    return everyone


every_world = pytest.mark.parametrize("world", PAIRS)


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def assert_is_the_whole_batch(every, name, masked, world):
    parts = make_parts(name, world, masked)
    expected = learn(make_loss(name), joined(parts))
    start = 0
    for found, part in zip(every, parts, strict=True):
        assert_equal(found["value"], expected["value"])
        if name not in WITHOUT_TERMS:
            assert_equal(found["terms"], expected["terms"])
        assert set(found["inputs"]) == set(expected["inputs"])
        for key, gradient in found["inputs"].items():
            rows = expected["inputs"][key][start : start + len(gradient)]
            if key == "words":
                rows = rows[:, : gradient.shape[1]]
            assert rows.shape == part[key].shape
            assert_equal(gradient / world, rows)
        start += len(next(iter(part.values())))
    for key, gradient in expected["parameters"].items():
        (own,) = {k for k in every[0]["parameters"] if k.endswith(f"loss.{key}")}
        mean = sum(found["parameters"][own] for found in every) / world
        assert_equal(mean, gradient)


@every_world
@pytest.mark.parametrize("name,masked", CASES)
def test_value_terms_and_gradients_are_those_of_one_process(name, masked, world, everyone):
    every = [found[name, masked] for found in everyone(world, "cases")]
    assert_is_the_whole_batch(every, name, masked, world)


def test_compiled_it_is_the_same(everyone):
    every = everyone(2, "compiled")
    assert_is_the_whole_batch([learned for learned, *_ in every], "learned", True, 2)
    assert_is_the_whole_batch([found[-1] for found in every], "global_contrastive", False, 2)
    whole = joined(make_parts("learned", 2, True))["word_mask"][:, :3]
    for _, (error, _), mask, _ in every:
        assert error is EmptyTextError
        assert (mask.dtype, mask.tolist()) == (torch.bool, whole.tolist())


@every_world
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["local_contrastive", "mgca"])
def test_a_fault_of_one_rank_is_an_error_on_all(kind, fault, world, everyone):
    error, message = FAULTS[fault]
    for found in everyone(world, "faults"):
        kind_of_error, text = found[kind, fault]
        assert kind_of_error is error, text
        with pytest.raises(error, match=message):
            raise error(text)


@every_world
@pytest.mark.parametrize("fault", OWN_FAULTS)
@pytest.mark.parametrize("kind", ["local_contrastive", "mgca"])
def test_a_fault_that_only_its_rank_sees_is_an_error_on_all(kind, fault, world, everyone):
    assert_rank_1_is_named(
        [found[kind, fault] for found in everyone(world, "faults")], *OWN_FAULTS[fault]
    )


def assert_rank_1_is_named(every, error, message):
    for rank, (kind_of_error, text) in enumerate(every):
        expected = error if rank == 1 else OptionError
        prefix = "" if rank == 1 else f"rank 1 cannot take part: {error.__name__}: "
        assert kind_of_error is expected, text
        with pytest.raises(expected, match=prefix + message):
            raise expected(text)


@every_world
def test_a_number_that_differs_is_an_error_on_all(world, everyone):
    """Each rank would have had a loss of its own."""
    for found in everyone(world, "faults"):
        message = "factor must agree between ranks in value; got 0 on rank 0 and 1 on rank 1."
        assert found["number"] == (OptionError, message)


@every_world
def test_gather_refuses_what_it_would_have_to_guess(world, everyone):
    every = everyone(world, "faults")
    for found in every:
        error, text = found["unmasked"]
        assert error is ShapeError
        assert "no word_mask tells words from padding" in text
    message = "only tensors are gathered between ranks; tensor is a list"
    assert_rank_1_is_named([found["alone"] for found in every], OptionError, message)


@every_world
def test_gather_concatenates_in_the_order_of_ranks(world, everyone):
    expected = torch.cat(
        [torch.arange(rank * 3.0).reshape(rank, 3) + 10 * rank for rank in range(world)]
    )
    weights = sum(rank + 1 for rank in range(world))
    for rank, found in enumerate(everyone(world, "gather")):
        assert torch.equal(found["whole"], expected)
        assert found["needs gradient"] == (True, False)
        # rank r sends r + 1 to every row
        assert torch.equal(found["gradient"], torch.full((rank, 3), float(weights)))
        assert found["truth"].tolist() == [rank == 1 for rank in range(world)]
        assert found["part of the gradient"] == rank * 3 * 4  # bytes: nothing of other ranks
        words, word_mask = found["batch"]["words"], found["batch"]["word_mask"]
        assert torch.equal(word_mask, words[..., 0] == 1)
        assert words.shape == (2 * world, world, 3)
        assert words.sum((1, 2)).tolist() == [3.0 * (r + 1) for r in range(world) for _ in "ab"]
        assert found["batch"]["labels"].tolist() == list(range(world))
        assert "once_differentiable" in found["twice"]
        whole, gradient = found["nothing"]
        assert whole.shape == gradient.shape == (0, 3)


def test_half_precision_gradients_are_added_up_in_float32(everyone):
    for found in everyone(3, "gather"):
        for dtype, numbers in HALF.items():
            assert found["half"][dtype].dtype == dtype
            assert found["half"][dtype].tolist() == [[sum(numbers)] * 6]


@every_world
def test_each_rank_matches_its_own_images_only(world, everyone):
    for rank, shapes in enumerate(everyone(world, "rows")):
        assert shapes == [(PAIRS[world][rank], sum(PAIRS[world]))]


@every_world
def test_ddp_learns_what_one_process_learns(world, everyone):
    """Encoders and temperatures, since the loss is a part of the wrapped module."""
    model = Tiny(make_loss("learned"))
    value = model(**joined(make_parts("learned", world, True)))
    value.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    learned = model.state_dict()
    for found in everyone(world, "ddp"):
        assert_equal(found["value"], value.detach())
        for key in ("gradients", "state"):
            found[key] = {k.replace("loss.loss", "loss"): x for k, x in found[key].items()}
        assert_equal(found["gradients"], expected)
        assert_equal(dict(found["state"]), dict(learned))


@every_world
def test_fsdp_has_the_gradients_of_one_process(world, everyone):
    model = Tiny(make_loss("learned"))
    value = model(**joined(make_parts("learned", world, True)))
    value.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    for rank, found in enumerate(everyone(world, "fsdp")):
        assert_equal(found["value"], value.detach())
        gradients = {k.replace("loss.loss", "loss"): x for k, x in found["gradients"].items()}
        assert_equal(gradients, expected)
        assert rank != 1 or found["shown"].count("learnable") == 2
    scalar = make_loss("sigmoid")
    scalar(**joined(make_parts("sigmoid", world, True))).backward()
    for found in everyone(world, "fsdp"):  # FSDP leaves it alone, and it is right on every rank
        assert_equal(found["bias"], scalar.bias.grad)


@every_world
def test_a_group_has_the_batch_of_its_ranks(world, everyone):
    *strangers, one, other = everyone(world, "group")
    expected = learn(make_loss("learned"), joined(make_parts("learned", world, True)[-2:]))
    for learned, _, told, order in (one, other):
        assert_equal(learned["value"], expected["value"])
        assert told[0] is OptionError
        assert "regions is a list" in told[1]
        assert order.tolist() == [world - 2, world - 1]
    for key, gradient in expected["parameters"].items():
        both = [found[0]["parameters"][f"loss.{key}"] for found in (one, other)]
        assert_equal(sum(both) / 2, gradient)
    assert_is_the_whole_batch([one[1], other[1]], "mgca", True, 2)
    for error, text in itertools.chain(*strangers):
        assert error is OptionError
        assert text == "group must have this rank; rank 0 is not in it."


@every_world
def test_without_gradients_the_value_is_the_same(world, everyone):
    for found in everyone(world, "quiet"):
        for name, (value, has_graph) in found.items():
            assert_equal(value, make_loss(name)(**joined(make_parts(name, world, True))).detach())
            assert not has_graph


def test_a_group_of_one_changes_no_bit(everyone):
    assert everyone(1, "alone") == [True]


@pytest.mark.parametrize("name,masked", CASES)
def test_in_one_process_it_is_the_loss_itself(name, masked):
    (inputs, *_) = make_parts(name, 2, masked)
    loss = make_loss(name)
    across = AcrossRanks(loss)
    assert torch.equal(across(**inputs), loss(**inputs))
    assert across.total(across.terms(**inputs)) == loss(**inputs)
    assert across.weights() == ({} if name in WITHOUT_TERMS else loss.weights())
    positional = across(*inputs.values())
    assert torch.equal(positional, loss(**inputs))


def test_gather_in_one_process_gives_its_argument_back():
    tensor = torch.ones(2, 3)
    assert gather(tensor) is tensor
    assert gather_batch({"labels": tensor})["labels"] is tensor


def test_a_model_composed_with_it_is_the_model_composed_without():
    reports = ["Small left pleural effusion.", "No pneumothorax."]
    tiny = {"channels": (8, 8, 16, 16)}
    with isolated(0):
        model = small_model(reports, image_options=tiny, embedding_dim=16).eval()
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    expected, maps = model(images, reports), model.attention(images[0], reports[0]).maps
    similarity = model.similarity(images, reports)
    model.loss = AcrossRanks(model.loss)
    output = model(images, reports)
    assert torch.equal(output.loss, expected.loss)
    assert output.terms == expected.terms
    assert torch.equal(model.similarity(images, reports), similarity)
    assert torch.equal(model.attention(images[0], reports[0]).maps, maps)


def test_what_the_loss_has_is_at_hand():
    loss = make_loss("learned")
    across = AcrossRanks(loss)
    assert inputs_of(across) == inputs_of(loss)
    assert across.local_loss is loss.local_loss
    with pytest.raises(AttributeError, match="nonsense"):
        _ = across.nonsense
    assert list(across.state_dict()) == [f"loss.{name}" for name in loss.state_dict()]
    (inputs, *_) = make_parts("learned", 2, True)
    for twin in (copy.deepcopy(across), pickle.loads(pickle.dumps(across))):
        assert torch.equal(twin(**inputs), loss(**inputs))
        assert twin.loss is not loss


def test_once_is_enough():
    once = AcrossRanks(LocalContrastiveLoss())
    for loss in (once, nn.Sequential(once)):
        with pytest.raises(OptionError, match="is or holds one already"):
            AcrossRanks(loss)
    with pytest.raises(ContractError, match=r"loss must be a module: .*, it is str"):
        AcrossRanks("local_contrastive")


def test_a_compiled_part_is_refused():
    """Terms go around what was compiled, and rows are not known of it."""
    compiled = torch.compile(LocalContrastiveLoss(), backend="eager")
    whole = make_loss("global_local_contrastive")
    whole.local_loss = compiled
    for loss in (compiled, whole):
        with pytest.raises(OptionError, match=r"torch\.compile\(AcrossRanks\(loss\)\)"):
            AcrossRanks(loss)
    outside = torch.compile(AcrossRanks(LocalContrastiveLoss()), backend="eager")
    assert inputs_of(outside) == inputs_of(LocalContrastiveLoss())


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
