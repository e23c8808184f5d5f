"""docs/training-loops.md: every recipe trains, in processes of their own.

Run as a script this file runs recipes: ``python test_training_loops.py folder recipe...``.
"""

import functools
import os
import pkgutil
import random
import re
import subprocess
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import gloria
from gloria.encoders import HFTextEncoder
from gloria.encoders.small_text import build_word_tokenizer, small_bert

PAGE = (Path(gloria.__file__).parents[1] / "docs" / "training-loops.md").read_text()


def python_blocks(text):
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


_INTRODUCTION, *_SECTIONS = PAGE.split("\n## ")
PIECES = python_blocks(_INTRODUCTION)
RECIPES = {text.partition("\n")[0]: python_blocks(text) for text in _SECTIONS}
NEEDS = {
    "Lightning": "lightning",
    "Hugging Face Trainer": "accelerate",
    "Accelerate": "accelerate",
    "The composed model": "timm",
    "Freeze, adapt, average": "timm",
}
COMPOSED = ("The composed model", "Freeze, adapt, average")
SPREAD = "Several GPUs: DDP"
SHARDED = "Sharded: FSDP"
COMPOSE = RECIPES[COMPOSED[0]].partition("model = compose()")[0]
for each in (SHARDED, COMPOSED[1]):
    RECIPES[each] = COMPOSE + RECIPES[each]
ALONE = [title for title in RECIPES if title not in (SPREAD, SHARDED)]
IN_PIECES = "A batch that does not fit: no gradient accumulation"


# ---------------------------------------------------------------- in a process of its own


def run_recipe(title):
    """The loss on all pairs before and after, and the gradient that a recipe leaves."""
    torch.manual_seed(0)
    random.seed(0)
    names = {"__name__": "docs"}
    exec(compile(PIECES, "pieces", "exec"), names)
    batch = names["collate"](list(names["pairs"]))
    new_model, models, starts = names["new_model"], [], []

    def watched():
        model = new_model()
        models.append(model)
        starts.append({name: x.clone() for name, x in model.state_dict().items()})
        return model

    names["new_model"] = watched
    exec(compile(RECIPES[title], title, "exec"), names)
    if not models:
        return {"finite": bool(names["output"].loss.isfinite())}
    (model,), (start,) = models, starts
    plain = new_model()
    plain.load_state_dict(start)
    before = plain(**batch)["loss"]
    before.backward()
    return {
        "before": before.item(),
        "after": model.cpu()(**batch)["loss"].item(),
        "first gradient": {name: p.grad for name, p in plain.named_parameters()},
        "last gradient": {name: p.grad for name, p in model.named_parameters()},
    }


def run_recipes(folder, titles):
    # the compiler's front half, which finds what it cannot take; the rest takes half a minute
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    found = {}
    for title in titles:
        try:
            found[title] = run_recipe(title)
        except Exception:
            found[title] = traceback.format_exc()
    torch.save(found, folder / "found.pt")


# ---------------------------------------------------------------- what pytest does


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loops")
    titles = [title for title in ALONE if find_spec(NEEDS.get(title, "re"))]
    done = subprocess.run(
        [sys.executable, __file__, str(folder), *titles],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("title", ALONE)
def test_a_recipe_trains(title, found):
    if not find_spec(NEEDS.get(title, "re")):
        pytest.skip(f"{NEEDS[title]} is not installed")
    result = found[title]
    assert not isinstance(result, str), result
    if title in COMPOSED:
        assert result["finite"]
    elif title != IN_PIECES:  # which makes one step, and has a test of its own
        assert result["after"] < 0.97 * result["before"]


def test_pieces_have_the_gradient_of_the_whole_batch(found):
    result = found[IN_PIECES]
    assert result["first gradient"].keys() == result["last gradient"].keys()
    for name, gradient in result["first gradient"].items():
        torch.testing.assert_close(result["last gradient"][name], gradient, rtol=1e-4, atol=1e-6)


def test_synchronised_norms_still_activate():
    """By the conversion that the page names."""
    pytest.importorskip("timm")
    (convert,) = re.findall(r"`(\S+convert_sync_batchnorm)`", PAGE)
    encoder = gloria.create_image_encoder("timm:efficientnet_b0", in_chans=1).eval()
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = encoder(images)
        converted = pkgutil.resolve_name(convert)(encoder)
        assert any(isinstance(each, nn.SyncBatchNorm) for each in converted.modules())
        torch.testing.assert_close(converted(images)[:2], expected[:2])


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # lately
def test_checkpointing_above_frozen_embeddings_changes_no_gradient():
    """By the calls that the page names; transformers 4 would by default give the layers none."""
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    calls = re.findall(r"`(model\.\w+_encoder\.model\.\w*checkpointing\w*\(.*?\))`", PAGE)
    assert len(calls) == 2
    reports = ["Small left effusion.", "No edema."]
    tokenizer = build_word_tokenizer(reports)
    bert = small_bert(tokenizer, dropout=0.0)
    encoder = HFTextEncoder(bert, tokenizer=tokenizer, last_n_layers=2)
    options = {"image_options": {"in_chans": 1}, "loss_options": {"preset": "stable"}}
    model = gloria.create_model("timm:resnet10t", encoder, embedding_dim=8, **options).train()
    model.text_encoder.freeze("model.embeddings")
    model.image_encoder.freeze("model.conv1")
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))

    def gradients():
        model.zero_grad()
        model(images, reports).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    expected = gradients()
    for call in calls:
        exec(call, {"model": model})
    found = gradients()
    assert None not in found.values()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def run_on_two_ranks(folder, script):
    """What a script prints."""
    # torch may abort while an interpreter ends that used gloo, without gloria too: it does not end
    leave = "\nimport os, sys\nsys.stdout.flush()\nos._exit(0)\n"
    (folder / "train.py").write_text(script + leave)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "train.py"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ddp_trains_on_two_ranks(tmp_path):
    printed = run_on_two_ranks(tmp_path, PIECES + RECIPES[SPREAD])
    losses = dict(re.findall(r"rank (\d): (\d+\.\d+)", printed))
    assert losses.keys() == {"0", "1"}
    assert losses["0"] == losses["1"]


def test_fsdp_trains_and_saves_what_one_process_loads(tmp_path):
    pytest.importorskip("timm")
    keep = 'torch.save([images[0], attention.grid_maps], f"{dist.get_rank()}.pt")\n'
    recipe = RECIPES[SHARDED].replace("del model,", f"{keep}del model,")
    run_on_two_ranks(tmp_path, PIECES + recipe)
    image, maps = torch.load(tmp_path / "0.pt")
    again = gloria.load_model(tmp_path / "sharded").attention(image, "Cardiomegaly.").grid_maps
    torch.testing.assert_close(again, maps, rtol=1e-5, atol=1e-7)


if __name__ == "__main__":
    run_recipes(Path(sys.argv[1]), sys.argv[2:])
