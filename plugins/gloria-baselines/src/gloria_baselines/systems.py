"""The systems of the GLoRIA paper's tables, as arguments of ``gloria.create_model`` and a recipe.

Everything here can also be said to ``gloria train``; the README has the commands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import gloria
from gloria.data import random_sentences
from gloria.training import TrainingRecipe


class System(NamedTuple):
    """One system.

    Attributes:
        model: arguments of :func:`gloria.create_model`.
        recipe: how it is trained.
    """

    model: Mapping[str, Any]
    recipe: TrainingRecipe

    def create(self, reports: Sequence[str]) -> gloria.GLoRIA:
        """The untrained model.

        Args:
            reports: the training reports; the vocabulary is built from them, where none comes
                along.
        """
        options = {"reports": reports, **self.model.get("text_options", {})}
        return gloria.create_model(**{**self.model, "text_options": options})


_ADAM = TrainingRecipe(betas=(0.9, 0.999), weight_decay=0.0)

# The images' weights are ImageNet's; text is read by a downloaded BERT, or learned from scratch.
PUBLISHED = {
    "convirt": System(
        {
            "image_encoder": "timm:resnet50",
            "image_options": {"pretrained": True},
            "text_encoder": "hf:emilyalsentzer/Bio_ClinicalBERT",
            "text_options": {"pooling": "max", "last_n_layers": 1, "frozen_layers": 6},
            "embedding_dim": 512,
            "projection": "mlp",
            "loss": "convirt",
        },
        replace(
            _ADAM,
            learning_rate=1e-4,
            batch_size=32,
            weight_decay=1e-6,
            text_policy=random_sentences,
        ),
    ),
    "vse_plus_plus": System(
        {
            "image_encoder": "baselines:vse",
            "image_options": {"trunk": "timm:resnet152", "pretrained": True},
            "text_encoder": "baselines:gru",
            "loss": "vse_plus_plus",
        },
        replace(_ADAM, learning_rate=2e-4, batch_size=128, clip_norm=2.0),
    ),
    "dsve": System(
        {
            "image_encoder": "baselines:dsve",
            "image_options": {"trunk": "timm:resnet152", "pretrained": True},
            "text_encoder": "baselines:sru",
            "loss": "dsve",
        },
        replace(_ADAM, learning_rate=1e-3, batch_size=160),
    ),
}
"""With the papers' constants. The trainer is gloria's: AdamW with a warm-up and a cosine schedule,
where the papers have Adam and steps; the number of steps is yours to set."""

_BACKBONE = {
    "in_chans": 1,
    "channels": [16, 32, 64, 128],
    "stem_width": 16,
    "output_stride": 8,
    "avg_down": False,
}
_TRUNK = {"trunk": "timm:resnet10t", **_BACKBONE}

_SMALL_VSE = {
    **PUBLISHED["vse_plus_plus"].model,
    "image_options": _TRUNK,
    "text_options": {"embedding_dim": 64, "width": 128},
}

SMALL = {
    "convirt": System(
        {
            **PUBLISHED["convirt"].model,
            "image_encoder": "timm:resnet10t",
            "image_options": _BACKBONE,
            "text_encoder": "small_bert",
            "text_options": {"pooling": "max", "last_n_layers": 1},
            "embedding_dim": 128,
        },
        TrainingRecipe(text_policy=random_sentences),
    ),
    "vse0": System({**_SMALL_VSE, "loss": "vse0"}, TrainingRecipe()),
    "vse_plus_plus": System(
        {**_SMALL_VSE, "loss_options": {"warmup_steps": 1000}}, TrainingRecipe()
    ),
    "dsve": System(
        {
            **PUBLISHED["dsve"].model,
            "image_options": {
                **_TRUNK,
                "region_stage": -2,  # what a region sees is nearer to it
                "width": 128,
                "dropout": 0.0,
            },
            "text_options": {"embedding_dim": 64, "width": 128, "dropout": 0.0},
            "loss_options": {"warmup_steps": 1000},
        },
        TrainingRecipe(),
    ),
}
"""Small enough for two CPU cores and the phantoms, from scratch. The warm-up is a long one: of 32
phantoms with five findings, the hardest negative is mostly one with the same finding."""
