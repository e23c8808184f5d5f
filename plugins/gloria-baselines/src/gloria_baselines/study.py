r"""Train a small version of a system on phantom radiographs, and see what it learned.

  python -m gloria_baselines.study vse_plus_plus
  python -m gloria_baselines.study dsve --steps 200

The films show one finding each, with a contrast of 3, so that a few hundred steps suffice. The
figures show that a system trains and that all of it is connected. They are no evidence about real
radiographs, and say nothing of how the systems compare.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gloria import GLoRIA
from gloria.data import PhantomPairs
from gloria.data.images import normalize
from gloria.data.phantom import PhantomDataset, PhantomItem
from gloria.evaluation.features import evaluating
from gloria.evaluation.phantoms import (
    Example,
    evaluate_gallery,
    grounding_examples,
    pictures,
    score_maps,
)
from gloria.training import train
from gloria.training.randomness import isolated
from gloria_baselines.localization import localize
from gloria_baselines.systems import SMALL

CONTRAST = 3.0


class StudyData(NamedTuple):
    """The phantoms of a study, drawn: of five classes, one finding each."""

    train: list[PhantomItem]
    test: list[PhantomItem]

    @classmethod
    def draw(cls, train_per_class: int = 200, test_per_class: int = 40) -> StudyData:
        """Draw them, in a few seconds; the default is 1,000 to train on and 200 to test."""
        names = f"val_5x{train_per_class}", f"test_5x{test_per_class}"
        return cls(*(list(PhantomDataset(name, contrast=CONTRAST)) for name in names))


def run(name: str, data: StudyData, *, steps: int = 400, seed: int = 0) -> dict[str, Any]:
    """Train one of :data:`~gloria_baselines.systems.SMALL` and evaluate it before and after.

    Returns:
        ``untrained`` and ``trained``: retrieval precision at 5 and zero-shot accuracy, for which
        chance is 0.2, and for DSVE its localisation.
    """
    system = SMALL[name]
    pairs = PhantomPairs(data.train)
    with isolated(seed):
        model = system.create(pairs.reports)
    untrained = evaluate(model, data.test, localizes=name == "dsve")
    history = train(model, pairs, replace(system.recipe, steps=steps, seed=seed))
    trained = evaluate(model, data.test, localizes=name == "dsve")
    return {"untrained": untrained, "trained": trained, "loss": history[-1]["loss"]}


def evaluate(
    model: GLoRIA, items: Sequence[PhantomItem], *, localizes: bool = False
) -> dict[str, Any]:
    """Retrieval and zero-shot; with ``localizes``, where sentences that name a finding look."""
    figures = evaluate_gallery(model, items, (5,))
    if localizes:
        figures["localization"] = evaluate_localization(model, items)
    return figures


def evaluate_localization(model: GLoRIA, items: Sequence[PhantomItem]) -> dict[str, Any]:
    """DSVE's heat maps of the sentences that name a finding, against the finding's mask.

    As :func:`gloria.evaluation.phantoms.evaluate_grounding` does it with attention, the control
    beside it: the same sentence on another image of the same finding, scored against the first
    one's mask. The heat maps are of either sign; their minimum is subtracted.
    """
    examples = grounding_examples(items)

    def figures(images: Sequence[int]) -> dict[str, float]:
        scores = score_maps(_maps(model, items, examples, images), items, examples)
        return {name: scores[name] for name in ("auroc", "correct_side") if name in scores}

    return {
        "matched": figures([each.item for each in examples]),
        "other_image": figures([each.other for each in examples]),
    }


def _maps(
    model: GLoRIA,
    items: Sequence[PhantomItem],
    examples: Sequence[Example],
    images: Sequence[int],
) -> Tensor:
    sentences = [
        next(each.text for each in items[item].sentences if mention in each.mentions)
        for item, _, mention in examples
    ]
    films = torch.stack(pictures([items[image] for image in images]))
    films = normalize(films, model.image_encoder.image_input)
    # the published share of the text's channels
    channels = max(model.text_encoder.pooled_dim * 180 // 2400, 1)
    with evaluating(model):
        maps = torch.cat(
            [
                localize(model, films[k : k + 64], sentences[k : k + 64], channels=channels)
                for k in range(0, len(sentences), 64)
            ]
        )
    maps = model.lay_over(maps, (films.shape[2], films.shape[3]))
    return maps - maps.amin((-2, -1), keepdim=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("system", choices=sorted(SMALL))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(
        json.dumps(run(args.system, StudyData.draw(), steps=args.steps, seed=args.seed), indent=2)
    )


if __name__ == "__main__":
    main()
