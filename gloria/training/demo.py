"""The demo: train GLoRIA on phantom radiographs and see what it learned.

Its figures show that training works and where words attend. They are no evidence about real
radiographs, nor for or against any paper.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import gloria
from gloria.data import PhantomPairs
from gloria.data.phantom import FINDINGS, PhantomDataset, PhantomItem, split_words
from gloria.evaluation.features import encode_images, encode_texts
from gloria.evaluation.phantoms import (
    TOLERANCE,
    Example,
    evaluate_gallery,
    evaluate_grounding,
    grounding_examples,
    mention_maps,
    pictures,
)
from gloria.files import write_text
from gloria.model import GLoRIA
from gloria.training.loop import TrainingRecipe, train
from gloria.training.randomness import isolated
from gloria.training.small import small_model
from gloria.training.steps import OnStep
from gloria.visualize import (
    GroundingExample,
    plot_comparison,
    plot_grounding_examples,
    plot_training_curves,
    save_figure,
)
from gloria.weights import save_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class DemoSettings:
    """How large the demo is.

    Attributes:
        train_items: phantoms to train on.
        validation_items: phantoms whose loss is watched.
        per_class: images of each of the five classes in the retrieval and zero-shot set.
        grounding_items: test phantoms whose words' attention is scored.
        steps: training steps.
    """

    train_items: int = 4000
    validation_items: int = 320
    per_class: int = 100
    grounding_items: int = 400
    steps: int = 700

    def splits(self) -> dict[str, int]:
        """How many phantoms are drawn of each split."""
        return {
            "train": self.train_items,
            "val": self.validation_items,
            f"test_5x{self.per_class}": 5 * self.per_class,
            "test": self.grounding_items,
        }

    def recipe(self, seed: int) -> TrainingRecipe:
        """How to train."""
        return TrainingRecipe(steps=self.steps, seed=seed, validate_every=max(self.steps // 7, 1))


PRESETS = {
    "quick": DemoSettings(),
    "long": DemoSettings(train_items=12000, validation_items=800, grounding_items=800, steps=4000),
}


@dataclass(frozen=True)
class DemoData:
    """The phantoms of a demo, drawn."""

    train: list[PhantomItem]
    validation: list[PhantomItem]
    gallery: list[PhantomItem]
    grounding: list[PhantomItem]

    @classmethod
    def draw(
        cls,
        settings: DemoSettings,
        *,
        seed: int,
        progress: Callable[[int], Any] = lambda drawn: None,
    ) -> DemoData:
        """Draw them all: about 3 ms each, which starting processes would not make faster."""
        train, val, exclusive, grounding = (
            list(PhantomDataset(split, count=count, seed=seed).draw(progress=progress))
            for split, count in settings.splits().items()
        )
        return cls(train, val, exclusive, grounding)


def run_demo(
    data: DemoData,
    settings: DemoSettings,
    out: Path,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Train, evaluate before and after, and write everything into ``out``.

    Returns:
        The metrics, as in ``metrics.json``.
    """
    pairs = PhantomPairs(data.train)
    with isolated(seed):
        model = small_model(pairs.reports).to(device).eval()
    say("evaluating the untrained model")
    untrained = evaluate(model, data)
    untrained_maps = _maps(model, data.grounding)
    start = time.perf_counter()
    history = train(
        model,
        pairs,
        settings.recipe(seed),
        validation=PhantomPairs(data.validation),
        on_step=on_step,
    )
    seconds = time.perf_counter() - start
    say("evaluating the trained model")
    metrics = {
        "note": "Phantom radiographs: no evidence about real ones, nor for or against any paper.",
        "gloria": gloria.__version__,
        "torch": torch.__version__,
        "device": str(device),
        "seed": seed,
        "settings": asdict(settings),
        "untrained": untrained,
        "trained": evaluate(model, data),
        "training_seconds": round(seconds, 1),
    }
    say(f"writing {out}")
    save_model(model, out / "model")
    write_text(out / "history.json", json.dumps(history) + "\n")
    save_figure(plot_training_curves(history), out / "curves.png")
    save_figure(plot_comparison(figures(metrics)), out / "comparison.png")
    save_figure(_plot_examples(model, data.grounding, untrained_maps), out / "attention.png")
    write_text(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return metrics


def evaluate(model: GLoRIA, data: DemoData) -> dict[str, Any]:
    """Retrieval, zero-shot and grounding figures of a model in eval mode."""
    return {
        **evaluate_gallery(model, data.gallery),
        "grounding": evaluate_grounding(model, data.grounding),
    }


def figures(metrics: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The main figures by name: of the trained and untrained model, chance, and another image."""
    trained, untrained = metrics["trained"], metrics["untrained"]
    rows: dict[str, dict[str, float]] = {}
    for direction in ("image_to_text", "text_to_image"):
        for k, value in trained[direction].items():
            rows[f"{direction.replace('_', ' ')} precision@{k}"] = {
                "trained": value,
                "untrained": untrained[direction][k],
                "chance": 0.2,
            }
    rows["zero-shot accuracy"] = {
        "trained": trained["zero_shot_accuracy"],
        "untrained": untrained["zero_shot_accuracy"],
        "chance": 0.2,
    }
    chance = {"auroc": {"chance": 0.5}, "correct_side": {"chance": 0.5}}
    for name, label in (
        ("peak_near_mask", f"attention peak within {TOLERANCE} px of mask"),
        ("auroc", "attention AUROC"),
        ("correct_side", "attention on correct side"),
    ):
        rows[label] = {
            "trained": trained["grounding"]["matched"][name],
            "untrained": untrained["grounding"]["matched"][name],
            **chance.get(name, {}),
            "other image": trained["grounding"]["other_image"][name],
        }
    return rows


def _shown(items: Sequence[PhantomItem]) -> list[Example]:
    """One example to look at for each finding: the first that has one."""
    first: dict[str, Example] = {}
    for each in grounding_examples(items):  # in the order of the findings
        first.setdefault(each.mention.finding, each)
    return list(first.values())


def _maps(model: GLoRIA, items: Sequence[PhantomItem], *, other_image: bool = False) -> Tensor:
    images = encode_images(model, pictures(items))
    texts = encode_texts(model, [item.report for item in items])
    return mention_maps(model, images, texts, items, _shown(items), other_image=other_image)


def _plot_examples(model: GLoRIA, items: Sequence[PhantomItem], untrained: Tensor) -> Figure:
    columns = {
        "trained": _maps(model, items),
        "untrained": untrained,
        "trained, other image": _maps(model, items, other_image=True),
    }
    rows = []
    for number, (index, _, mention) in enumerate(_shown(items)):
        item = items[index]
        sentence = next(each for each in item.sentences if mention in each.mentions)
        rows.append(
            GroundingExample(
                image=item.image / 255,
                words=split_words(sentence.text),
                start=mention.start - sentence.start,
                stop=mention.stop - sentence.start,
                maps={title: maps[number] for title, maps in columns.items()},
                mask=item.masks[FINDINGS.index(mention.finding)],
                title=mention.finding,
            )
        )
    return plot_grounding_examples(rows)
