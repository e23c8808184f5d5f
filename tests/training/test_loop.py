"""The training loop: it learns, repeats itself, resumes to the bit and stops at nonsense."""

import math
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from gloria.data import ImageReport, ReportPolicy, random_sentences
from gloria.distributed import AcrossRanks
from gloria.errors import CheckpointError, DataError, DtypeError, NonFiniteLossError, OptionError
from gloria.losses import GlobalContrastiveLoss
from gloria.training import TrainingRecipe, train
from gloria.training.augmentation import Augmentation
from gloria.training.checkpoints import last_step
from gloria.training.loop import validation_loss
from gloria.training.randomness import isolated
from gloria.training.small import small_model
from gloria.weights import load_model

# a bright square at one of four corners, and a report that says where
CORNERS = {
    "upper left": (2, 2),
    "upper right": (2, 20),
    "lower left": (20, 2),
    "lower right": (20, 20),
}


class Corners:
    """32 px images; the finding's place is the only thing to learn."""

    def __init__(self, count):
        self.items = []
        generator = torch.Generator().manual_seed(0)
        for index in range(count):
            where = list(CORNERS)[index % 4]
            y, x = CORNERS[where]
            image = 0.1 * torch.rand(1, 32, 32, generator=generator)
            image[:, y : y + 10, x : x + 10] += 0.8
            self.items.append(ImageReport(image, f"There is an opacity in the {where} corner."))
        self.reports = [item.report for item in self.items]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


PAIRS = Corners(16)
QUICK = TrainingRecipe(steps=6, batch_size=4, validate_every=3, checkpoint_every=2)


def build(seed=0):
    with isolated(seed):
        return small_model(PAIRS.reports, embedding_dim=16)


class StopHereError(Exception):
    pass


def stop(record):
    if record["step"] == 5:  # which no checkpoint is due at
        raise StopHereError


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_learns_four_corners():
    model = build()
    history = train(model, PAIRS, TrainingRecipe(steps=40, batch_size=4, augmentation=None))
    assert history[0]["loss"] == pytest.approx(4 * math.log(4), rel=0.6)
    texts = [f"There is an opacity in the {where} corner." for where in CORNERS]
    images = torch.stack([PAIRS[i].image for i in range(4)])
    mean, std = model.image_encoder.image_input.mean[0], model.image_encoder.image_input.std[0]
    similarity = model.similarity((images - mean) / std, texts)
    assert similarity.argmax(1).tolist() == [0, 1, 2, 3]
    assert not model.training


@pytest.mark.parametrize(
    ("augmentation", "size"),
    [(None, (32, 32)), (Augmentation(), (32, 32)), (Augmentation(crop=24), (24, 24))],
)
def test_the_model_knows_the_size_of_the_images_it_saw(augmentation, size, tmp_path):
    model = build()
    seen = set()
    model.image_encoder.register_forward_pre_hook(
        lambda module, args: seen.add(tuple(args[0].shape[-2:]))
    )
    recipe = replace(QUICK, augmentation=augmentation)
    train(model, PAIRS, recipe, validation=PAIRS, folder=tmp_path)
    assert seen == {model.trained_image_size} == {size}
    assert load_model(tmp_path / "best").trained_image_size == size
    again = build()  # a run that is done trains no step, and knows it all the same
    train(again, PAIRS, recipe, validation=PAIRS, folder=tmp_path)
    assert again.trained_image_size == size


def test_the_same_seed_gives_the_same_weights_to_the_bit():
    first, second, other = build(), build(), build()
    histories = [train(model, PAIRS, QUICK) for model in (first, second)]
    assert histories[0] == histories[1]
    assert torch.equal(weights(first), weights(second))
    train(other, PAIRS, TrainingRecipe(steps=6, batch_size=4, seed=1))
    assert not torch.equal(weights(first), weights(other))


def test_the_default_device_changes_nothing():
    """One for new tensors; here it is one that would lose whatever it got."""
    models = build(), build()
    recipe = replace(QUICK, text_policy=random_sentences)
    train(models[0], PAIRS, recipe, validation=PAIRS)
    with torch.device("meta"):
        train(models[1], PAIRS, recipe, validation=PAIRS)
    assert torch.equal(weights(models[0]), weights(models[1]))


def test_loading_processes_and_the_global_generator_change_nothing():
    first, second = build(), build()
    train(first, PAIRS, QUICK)
    before = torch.get_rng_state()
    train(second, PAIRS, QUICK, workers=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(weights(first), weights(second))


def test_history_has_every_step_and_term():
    records = []
    history = train(build(), PAIRS, QUICK, validation=PAIRS, on_step=records.append)
    assert records == history
    assert [record["step"] for record in history] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "learning_rate", "gradient_norm", "global_image_to_text"} <= history[0].keys()
    assert [record["step"] for record in history if "validation_loss" in record] == [3, 6]


@pytest.mark.parametrize("how", [{}, {"precision": "bfloat16"}, {"mini_batch_size": 3}])
def test_a_stopped_run_resumes_to_the_bit(how, tmp_path):
    recipe = replace(QUICK, **how)
    whole, stopped, resumed = build(), build(), build()
    expected = train(whole, PAIRS, recipe, validation=PAIRS)

    with pytest.raises(StopHereError):
        train(stopped, PAIRS, recipe, validation=PAIRS, folder=tmp_path, on_step=stop)
    assert last_step(tmp_path / "checkpoints") == 5
    history = train(resumed, PAIRS, recipe, validation=PAIRS, folder=tmp_path)
    assert history == expected
    assert torch.equal(weights(resumed), weights(whole))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000006"]


def test_mini_batches_are_of_training_and_of_this_run(tmp_path):
    seen, model = [], build()
    model.image_encoder.register_forward_hook(
        lambda part, given, made: seen.append((part.training, len(given[0])))
    )
    recipe = replace(QUICK, steps=1, mini_batch_size=3)
    train(model, PAIRS, recipe, validation=PAIRS, folder=tmp_path)
    assert seen[:4] == [(True, 3), (True, 1), (True, 1), (True, 3)]  # the backward goes backwards
    assert set(seen[4:]) == {(False, 4)}
    with pytest.raises(CheckpointError, match="mini_batch_size"):
        train(build(), PAIRS, replace(recipe, mini_batch_size=None), folder=tmp_path)


def test_bfloat16_is_for_the_products_of_training_and_validation_alone(tmp_path):
    recipe = replace(QUICK, precision="bfloat16")
    exact = train(build(), PAIRS, QUICK)
    seen, model = [], build()
    convolution = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    convolution.register_forward_hook(lambda *made: seen.append((made[0].training, made[2].dtype)))
    rounded = train(model, PAIRS, recipe, validation=PAIRS, folder=tmp_path)
    assert set(seen) == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    # of the same weights and batch: later steps have moved apart
    assert rounded[0]["loss"] != exact[0]["loss"]
    assert rounded[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.01)
    with pytest.raises(CheckpointError, match="precision"):
        train(build(), PAIRS, QUICK, folder=tmp_path)


def test_a_killed_process_resumes_to_the_bit(tmp_path):
    """Killed while it writes: the next start goes on from what is whole, and clears the rest."""
    script = textwrap.dedent(
        f"""
        import os, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import torch
        import test_loop
        save = torch.save
        def die(state, path):
            save(state, path)
            if "step-000004" in str(path):
                os.kill(os.getpid(), 9)
        torch.save = die
        test_loop.train(
            test_loop.build(), test_loop.PAIRS, test_loop.QUICK, folder={str(tmp_path)!r}
        )
        """
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert len(left) == 2
    assert left[0].startswith(".step-000004.")
    assert left[1] == "step-000002"
    resumed, whole = build(), build()
    history = train(resumed, PAIRS, QUICK, folder=tmp_path)
    assert history == train(whole, PAIRS, QUICK)
    assert torch.equal(weights(resumed), weights(whole))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000006"]


@pytest.mark.skipif(os.name != "posix", reason="only there folders are locked")
def test_two_processes_do_not_train_into_one_folder(tmp_path):
    """Nor does the lock of one that was killed, or that goes on loading, stay."""
    code = f"""
        import sys
        from pathlib import Path
        from gloria.training.checkpoints import alone_in
        with alone_in(Path({str(tmp_path)!r})):
            print("there", flush=True)
            sys.stdin.read()
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], **pipes) as other:
        assert other.stdout.readline() == b"there\n"
        with pytest.raises(CheckpointError, match="another process is writing into"):
            train(build(), PAIRS, QUICK, folder=tmp_path)
        other.kill()
    with pytest.raises(StopHereError):
        train(build(), PAIRS, QUICK, folder=tmp_path, on_step=stop, workers=1)
    assert len(train(build(), PAIRS, QUICK, folder=tmp_path)) == QUICK.steps


def test_a_folder_in_which_nothing_was_written_does_not_stay(tmp_path):
    from gloria.training.checkpoints import alone_in

    (tmp_path / "there").mkdir()
    for name in ("there", "new", "runs/new", "used"):
        with alone_in(tmp_path / name):
            if name == "used":
                (tmp_path / name / "log").touch()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["there", "used"]


def test_a_folder_that_can_not_be_made_is_told_before_a_step(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(CheckpointError, match=f"{folder} can't be made: "):
            train(build(), PAIRS, QUICK, folder=folder, on_step=stop)


def test_a_full_disk_is_told_and_costs_no_checkpoint(tmp_path):
    resource = pytest.importorskip("resource")
    model = build()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(record):
        if record["step"] == 3:
            size = 4 * sum(parameter.numel() for parameter in model.parameters())
            enough = 3 * size // 2  # for the model; the optimizer's two averages are larger
            resource.setrlimit(resource.RLIMIT_FSIZE, (enough, hard))

    try:
        with pytest.raises(CheckpointError, match="step-000004 can't be written: "):
            train(model, PAIRS, QUICK, folder=tmp_path, on_step=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]
    assert train(build(), PAIRS, QUICK, folder=tmp_path) == train(build(), PAIRS, QUICK)


def test_a_finished_run_is_not_run_again(tmp_path):
    first, second = build(), build()
    expected = train(first, PAIRS, QUICK, folder=tmp_path)
    assert train(second, PAIRS, QUICK, folder=tmp_path) == expected
    assert torch.equal(weights(first), weights(second))


def test_the_best_model_is_kept(tmp_path):
    """Of a run at a rate at which the loss rises again."""
    recipe = replace(QUICK, learning_rate=1.0)
    history = train(build(), PAIRS, recipe, validation=PAIRS, folder=tmp_path)
    first, last = (r["validation_loss"] for r in history if "validation_loss" in r)
    best = validation_loss(load_model(tmp_path / "best"), PAIRS, 4)
    assert first < last
    assert best == pytest.approx(first)


def test_another_recipe_does_not_resume_silently(tmp_path):
    train(build(), PAIRS, QUICK, folder=tmp_path)
    other = TrainingRecipe(steps=9, batch_size=4, validate_every=3, checkpoint_every=2)
    with pytest.raises(CheckpointError, match="steps was 6, is 9"):
        train(build(), PAIRS, other, folder=tmp_path)


def test_what_does_not_change_the_result_may_change(tmp_path):
    """How often is saved, how items are loaded, and the kind of numbers and sequences."""
    settings = {"size": (32, 32), "share": np.float32(0.5), "fast": np.bool_(True)}
    train(build(), PAIRS, QUICK, folder=tmp_path, settings=settings)
    other = replace(QUICK, checkpoint_every=3, batch_size=np.int64(4), betas=[0.9, 0.98])
    settings = {"size": [32, 32], "share": 0.5, "fast": True}
    assert len(train(build(), PAIRS, other, folder=tmp_path, settings=settings, workers=1)) == 6


def test_settings_do_not_hide_the_recipe(tmp_path):
    with pytest.raises(
        OptionError, match=r"settings must not .* recipe's; got \['pairs', 'seed'\]"
    ):
        train(build(), PAIRS, QUICK, folder=tmp_path, settings={"seed": 1, "pairs": 2, "data": 3})


def test_settings_that_no_checkpoint_can_hold_are_told_before_training(tmp_path):
    with pytest.raises(OptionError, match=r"must be JSON values; got the PurePosixPath images"):
        train(build(), PAIRS, QUICK, folder=tmp_path, settings={"from": PurePosixPath("images")})


def test_other_frozen_parameters_do_not_resume(tmp_path):
    model = build()
    model.text_encoder.freeze()
    train(model, PAIRS, QUICK, folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"trained other parameters .* Freeze the same"):
        train(build(), PAIRS, QUICK, folder=tmp_path)


def test_another_model_or_data_does_not_resume_silently(tmp_path):
    train(build(), PAIRS, QUICK, folder=tmp_path, settings={"loss": "a", "data": "12ab"})
    with pytest.raises(CheckpointError, match="data was '12ab', is '34cd'"):
        train(build(), PAIRS, QUICK, folder=tmp_path, settings={"loss": "a", "data": "34cd"})


def test_another_loss_or_other_reports_do_not_resume_untold(tmp_path):
    class Told(Corners):
        def fingerprint(self):
            return "".join(self.reports)

    pairs = Told(16)
    train(build(), pairs, QUICK, folder=tmp_path)
    other = build()
    other.loss = GlobalContrastiveLoss()
    with pytest.raises(CheckpointError, match=r"composed was .*'parts'.*GlobalLocalContrastive"):
        train(other, pairs, QUICK, folder=tmp_path)
    pairs.reports = [report.upper() for report in pairs.reports]
    with pytest.raises(CheckpointError, match="training_data"):
        train(build(), pairs, QUICK, folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("optimizer.pt", "nothing"), ("progress.json", "[]"), ("progress.json", '{"step": 6}')],
)
def test_a_damaged_checkpoint_is_named(tmp_path, name, content):
    train(build(), PAIRS, replace(QUICK, steps=2), folder=tmp_path)
    (tmp_path / "checkpoints" / "step-000002" / name).write_text(content)
    with pytest.raises(CheckpointError, match="step-000002 is damaged"):
        train(build(), PAIRS, replace(QUICK, steps=2), folder=tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run():
    model = build()
    before = weights(model)
    model.image_encoder.register_forward_pre_hook(lambda module, args: (args[0] * math.nan,))
    with pytest.raises(NonFiniteLossError, match=r"step 1: .*loss.*nothing was updated"):
        train(model, PAIRS, TrainingRecipe(steps=2, batch_size=4))
    assert torch.equal(weights(model), before)


def test_a_validation_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = build()
    model.image_encoder.register_forward_pre_hook(
        lambda module, args: args if module.training else (args[0] * math.nan,)
    )
    recipe = TrainingRecipe(steps=4, batch_size=4, validate_every=2, checkpoint_every=1)
    with pytest.raises(NonFiniteLossError, match="the validation loss is nan"):
        train(model, PAIRS, recipe, validation=PAIRS, folder=tmp_path)
    assert not (tmp_path / "best").exists()
    assert (tmp_path / "checkpoints" / "step-000001").is_dir()


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_is_the_mean_over_whole_batches_whoever_loads_them(workers):
    pairs = Corners(11)
    model = build().train()
    loss = validation_loss(model, pairs, 4, workers=workers)
    assert model.training
    model.eval()
    mean, std = model.image_encoder.image_input.mean[0], model.image_encoder.image_input.std[0]
    expected = []
    with torch.no_grad():
        for batch in ([0, 1, 2, 3], [4, 5, 6, 7]):
            images = torch.stack([pairs[index].image for index in batch])
            expected.append(model((images - mean) / std, [pairs[i].report for i in batch]).loss)
    assert loss == pytest.approx(float(sum(expected) / 2), rel=1e-5)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_layer_is_named_until_it_has_its_shape():
    model = build()
    model.loss.extra = nn.LazyLinear(3)
    with pytest.raises(
        OptionError, match=r"shapes of its parameters; loss\.extra\.weight has none"
    ):
        train(model, PAIRS, QUICK)
    model.loss.extra(torch.zeros(1, 4))
    train(model, PAIRS, replace(QUICK, steps=1))


def test_frozen_parameters_stay():
    model = build()
    model.text_encoder.freeze()
    before = {name: p.clone() for name, p in model.text_encoder.named_parameters()}
    train(model, PAIRS, TrainingRecipe(steps=2, batch_size=4))
    for name, parameter in model.text_encoder.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_is_trained_is_in_float32(dtype):
    model = build()
    model.text_encoder.to(dtype)
    message = rf"model must be in float32 to be trained; text_encoder\..* is in {str(dtype)[6:]}\."
    with pytest.raises(DtypeError, match=message):
        train(model, PAIRS, QUICK)


def test_a_path_is_no_pairs():
    with pytest.raises(DtypeError, match=r"pairs must be pairs, such as .*'my\.csv'.*; got a path"):
        train(build(), "my.csv", QUICK)
    with pytest.raises(DtypeError, match="validation must be pairs"):
        train(build(), PAIRS, QUICK, validation=Path("val.csv"))


def test_what_wraps_a_model_is_told():
    with pytest.raises(DtypeError, match=r"model must be a GLoRIA; got AveragedModel.*\.module"):
        train(AveragedModel(build()), PAIRS, QUICK)


def test_a_model_that_is_frozen_whole_is_told():
    model = build().requires_grad_(False)
    with pytest.raises(OptionError, match="a parameter to train; all of this GLoRIA are frozen"):
        train(model, PAIRS, QUICK)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((torch.zeros(1, 32, 32), "x"), "an item must have an attribute image, .*; got tuple"),
        (ImageReport(torch.zeros(1, 32, 32).byte(), "x"), "got dtype torch.uint8"),
    ],
)
def test_a_pair_that_is_not_as_said_is_told_before_training(pair, message):
    model = build()
    before = weights(model)
    with pytest.raises(DtypeError, match=message):
        train(model, [pair] * 4, QUICK)
    assert torch.equal(weights(model), before)


def test_the_schedule():
    recipe = TrainingRecipe(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [recipe.learning_rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001
    assert TrainingRecipe(steps=1).learning_rate_at(0) > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 1.5},
        {"batch_size": 1},
        {"learning_rate": -1.0},
        {"clip_norm": 0.0},
        {"seed": -1},
        {"seed": 2**64},
        {"betas": (0.9, 1.0)},
        {"weight_decay": -0.1},
        {"precision": "float16"},
        {"mini_batch_size": 0},
        {"text_policy": "impression"},
    ],
)
def test_a_recipe_that_makes_no_sense(wrong):
    with pytest.raises((OptionError, TypeError), match=next(iter(wrong))):
        TrainingRecipe(**wrong)


def test_too_few_pairs():
    with pytest.raises(DataError, match="pairs must hold at least one batch of 32 pairs; got 16"):
        train(build(), PAIRS, TrainingRecipe())


def test_images_of_different_sizes():
    pairs = Corners(4)
    pairs.items[1] = ImageReport(torch.zeros(1, 16, 16), "x")
    with pytest.raises(DataError, match="must have one shape"):
        train(build(), pairs, TrainingRecipe(steps=1, batch_size=4))


def test_a_text_policy_reads_anew_in_every_step_and_resumes(tmp_path):
    seen = []

    def first_words(reports, generator):
        number = int(torch.randint(2, 7, (), generator=generator))
        seen.append([" ".join(report.split()[:number]) for report in reports])
        return seen[-1]

    recipe = replace(QUICK, text_policy=first_words)
    whole, resumed = build(), build()
    train(whole, PAIRS, recipe)
    expected = list(seen)
    assert len({len(texts[0].split()) for texts in expected}) > 1
    with pytest.raises(StopHereError):
        train(build(), PAIRS, recipe, folder=tmp_path, on_step=stop)
    seen.clear()
    train(resumed, PAIRS, recipe, folder=tmp_path)
    assert seen == expected[5:]
    assert torch.equal(weights(whole), weights(resumed))
    with pytest.raises(CheckpointError, match=r"text_policy was '.*first_words', is None"):
        train(build(), PAIRS, QUICK, folder=tmp_path)


def test_a_loss_with_a_schedule_is_told_each_step():
    """Also where it is part of another one; a validation is no step."""

    class Scheduled(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = []

        def at_step(self, step):
            self.steps.append(step)

    model = build()
    part = Scheduled()
    model.loss.part = part
    train(model, PAIRS, QUICK, validation=PAIRS)
    assert part.steps == [0, 1, 2, 3, 4, 5]
    part.steps.clear()
    model.loss.part = AcrossRanks(part)  # which has the methods of what it wraps
    train(model, PAIRS, replace(QUICK, steps=2))
    assert part.steps == [0, 1]


def test_a_report_policy_is_a_text_policy_and_told_from_another(tmp_path):
    recipe = replace(QUICK, steps=2, text_policy=ReportPolicy(("impression",), one_sentence=True))
    train(build(), PAIRS, recipe, folder=tmp_path)
    assert len(train(build(), PAIRS, recipe, folder=tmp_path)) == 2  # it stands there, and is done
    with pytest.raises(CheckpointError, match=r"text_policy was .*one_sentence=True.*, is .*False"):
        train(
            build(),
            PAIRS,
            replace(recipe, text_policy=ReportPolicy(("impression",))),
            folder=tmp_path,
        )
