"""Fixtures shared by the tests."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from textwrap import dedent
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

# The tensors of tests are tiny: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
import torch
from torch import Tensor

Install = Callable[..., None]

# The same examples every time. More of them: pytest --hypothesis-profile=thorough
hypothesis.settings.register_profile("gloria", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=400)
hypothesis.settings.load_profile("gloria")


class Tolerance(NamedTuple):
    """What two computations of one thing may differ by."""

    rtol: float
    atol: float


VALUES = {
    # a few hundred roundings of 1.1e-16, of numbers of order one
    torch.float64: Tolerance(0.0, 1e-12),
    # rtol is 11 roundings of 1.2e-7; atol is for logits that temperature 1/50 scales up
    torch.float32: Tolerance(1.3e-6, 1e-5),
    # one rounding to 11 bits, by inputs or result; everything between is float32
    torch.float16: Tolerance(1e-3, 1e-3),
    # one rounding to 8 bits
    torch.bfloat16: Tolerance(8e-3, 8e-3),
}
GRADIENTS = {
    torch.float64: Tolerance(0.0, 1e-12),
    # the softmaxes' backward subtracts numbers that are nearly equal
    torch.float32: Tolerance(5e-4, 1e-5),
    # the gradient of a half-precision leaf is rounded to its dtype at the end
    torch.float16: Tolerance(2e-3, 1e-4),
    torch.bfloat16: Tolerance(1.6e-2, 1e-4),
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install distributions as pip lays them out, found by real entry-point discovery.

    ``install("my-plugin", {"my_plugin.py": "..."}, entry_points={"name": "module"})``
    """
    modules = set(sys.modules)
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.delenv("GLORIA_DISABLE_PLUGINS", raising=False)

    def install(
        distribution: str,
        files: Mapping[str, str],
        entry_points: Mapping[str, str],
        version: str = "1.0",
    ) -> None:
        for name, text in files.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(dedent(text))
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        lines = [f"{name} = {target}" for name, target in entry_points.items()]
        (info / "entry_points.txt").write_text("[gloria.plugins]\n" + "\n".join(lines) + "\n")

    install.site = site
    yield install
    for name in set(sys.modules) - modules:
        if str(site) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def compare(table: Mapping[torch.dtype, Tolerance], actual: Tensor, expected: object) -> None:
    """Hold ``actual`` to a float64 reference, in the tolerance of its own dtype."""
    assert isinstance(actual, Tensor), f"expected a tensor, got {actual!r}"
    rtol, atol = table[actual.dtype]
    reference = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.double(), reference, rtol=rtol, atol=atol)


@pytest.fixture(scope="session")
def assert_values() -> Callable[[Tensor, object], None]:
    """``assert_values(actual, expected)`` raises where values differ, or one of them is NaN."""
    return partial(compare, VALUES)


@pytest.fixture(scope="session")
def assert_gradients() -> Callable[[Tensor, object], None]:
    """As ``assert_values``, with the tolerances of gradients."""
    return partial(compare, GRADIENTS)


class Pairs(NamedTuple):
    """Inputs of local matching, with ragged texts."""

    regions: Tensor
    words: Tensor
    word_mask: Tensor
    region_mask: Tensor | None


@pytest.fixture(scope="session")
def make_pairs() -> Callable[..., Pairs]:
    """``make_pairs(images, texts, regions, words, dim)``: random, the longest text first."""

    def make_pairs(
        images: int,
        texts: int,
        regions: int,
        words: int,
        dim: int,
        *,
        masked_regions: bool = False,
        dtype: torch.dtype = torch.float64,
        scale: float = 1.0,
        seed: int = 0,
    ) -> Pairs:
        generator = torch.Generator().manual_seed(seed)

        def some_real(rows: int, columns: int) -> Tensor:
            lengths = torch.randint(1, columns + 1, (rows, 1), generator=generator)
            lengths[:1] = columns
            return torch.arange(columns) < lengths

        def normal(*shape: int) -> Tensor:
            values = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return (scale * values).to(dtype)

        mask = some_real(texts, words)
        return Pairs(
            normal(images, regions, dim),
            normal(texts, words, dim),
            mask,
            # real regions are scattered, unlike real words
            some_real(images, regions)[:, torch.randperm(regions, generator=generator)]
            if masked_regions
            else None,
        )

    return make_pairs


@pytest.fixture(scope="session")
def naive() -> SimpleNamespace:
    """The definitions in plain Python: nested loops over floats, nothing of gloria, no torch.

    ``naive.local_similarity``, ``naive.local_attention``, ``naive.max_similarity``,
    ``naive.global_similarity`` and ``naive.contrastive_terms``; tensors in, float64 tensors out.
    ``naive.dot``, ``naive.unit``, ``naive.cosine`` and ``naive.softmax`` take lists of floats.
    """
    eps = 1e-8

    def dot(a: list[float], b: list[float]) -> float:
        return math.fsum(x * y for x, y in zip(a, b, strict=True))

    def norm(a: list[float]) -> float:
        return math.sqrt(dot(a, a))

    def unit(a: list[float]) -> list[float]:
        length = max(norm(a), eps)
        return [x / length for x in a]

    def cosine(a: list[float], b: list[float]) -> float:
        return dot(a, b) / max(norm(a) * norm(b), eps)

    def softmax(scores: list[float]) -> list[float]:
        highest = max(scores)
        powers = [math.exp(score - highest) for score in scores]
        total = math.fsum(powers)
        return [power / total for power in powers]

    def attend(v, t, attention, product, temperature):
        """Attention ``[word][region]`` of the words t over the regions v."""
        scale = math.sqrt(len(t[0])) if product == "scaled_dot" else 1.0
        scores = [[dot(word, region) / scale for region in v] for word in t]
        if attention == "words_then_regions":
            columns = [softmax([row[j] for row in scores]) for j in range(len(v))]
            scores = [[columns[j][i] for j in range(len(v))] for i in range(len(t))]
        return [softmax([score / temperature for score in row]) for row in scores]

    def aggregate(cosines, aggregation, temperature):
        if aggregation == "max":
            return max(cosines)
        if aggregation == "mean":
            return math.fsum(cosines) / len(cosines)
        total = math.fsum(math.exp(r / temperature) for r in cosines)
        if aggregation == "logmeanexp":
            total /= len(cosines)
        return temperature * math.log(total)

    def real(rows, mask, product):
        kept = [row for row, keep in zip(rows, mask, strict=True) if keep]
        return [unit(row) for row in kept] if product == "cosine" else kept

    def all_real(regions, region_mask):
        shape = regions.shape[:2]
        return (torch.ones(shape) if region_mask is None else region_mask).tolist()

    def local_similarity(
        regions,
        words,
        word_mask,
        region_mask=None,
        *,
        attention="regions",
        product="dot",
        attention_temperature=0.25,
        aggregation="logsumexp",
        match_temperature=0.2,
    ):
        rows = []
        for image, image_mask in zip(regions.tolist(), all_real(regions, region_mask), strict=True):
            v = real(image, image_mask, product)
            row = []
            for text, text_mask in zip(words.tolist(), word_mask.tolist(), strict=True):
                t = real(text, text_mask, product)
                weights = attend(v, t, attention, product, attention_temperature)
                cosines = []
                for word, weight in zip(t, weights, strict=True):
                    c = [dot(weight, [region[d] for region in v]) for d in range(len(word))]
                    cosines.append(cosine(c, word))
                row.append(aggregate(cosines, aggregation, match_temperature))
            rows.append(row)
        return torch.tensor(rows, dtype=torch.float64).reshape(len(regions), len(words))

    def local_attention(
        regions,
        words,
        word_mask,
        region_mask=None,
        *,
        attention="regions",
        product="dot",
        attention_temperature=0.25,
    ):
        maps = torch.zeros(*words.shape[:2], regions.shape[1], dtype=torch.float64)
        masks = all_real(regions, region_mask)
        for k in range(len(words)):
            v = real(regions[k].tolist(), masks[k], product)
            t = real(words[k].tolist(), word_mask[k].tolist(), product)
            weights = attend(v, t, attention, product, attention_temperature)
            real_words = [i for i, keep in enumerate(word_mask[k].tolist()) if keep]
            real_regions = [j for j, keep in enumerate(masks[k]) if keep]
            for i, row in zip(real_words, weights, strict=True):
                for j, weight in zip(real_regions, row, strict=True):
                    maps[k, i, j] = weight
        return maps

    def max_similarity(
        regions,
        words,
        word_mask,
        region_mask=None,
        *,
        maximum_over="regions",
        reduction="mean",
        product="cosine",
    ):
        rows = []
        for image, image_mask in zip(regions.tolist(), all_real(regions, region_mask), strict=True):
            v = real(image, image_mask, product)
            row = []
            for text, text_mask in zip(words.tolist(), word_mask.tolist(), strict=True):
                t = real(text, text_mask, product)
                these, those = (t, v) if maximum_over == "regions" else (v, t)
                scale = math.sqrt(len(t[0])) if product == "scaled_dot" else 1.0
                best = [max(dot(this, that) for that in those) / scale for this in these]
                row.append(math.fsum(best) / (len(best) if reduction == "mean" else 1))
            rows.append(row)
        return torch.tensor(rows, dtype=torch.float64).reshape(len(regions), len(words))

    def global_similarity(images, texts):
        rows = [[cosine(v, t) for t in texts.tolist()] for v in images.tolist()]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(images), len(texts))

    def contrastive_terms(similarity, temperature):
        logits = [[value / temperature for value in row] for row in similarity.tolist()]

        def surprise(row, k):
            highest = max(row)
            return highest + math.log(math.fsum(math.exp(x - highest) for x in row)) - row[k]

        def direction(rows):
            return math.fsum(surprise(row, k) for k, row in enumerate(rows)) / len(rows)

        return direction(logits), direction([list(column) for column in zip(*logits, strict=True)])

    return SimpleNamespace(
        local_similarity=local_similarity,
        local_attention=local_attention,
        max_similarity=max_similarity,
        global_similarity=global_similarity,
        contrastive_terms=contrastive_terms,
        dot=dot,
        unit=unit,
        cosine=cosine,
        softmax=softmax,
    )


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A checkpoint as the published code writes it: random weights, a small BERT.

    ``published.file``, its ``weights`` and ``settings``, and ``bert``, the folder of config and
    tokenizer that the settings name. ``published.write(path, ...)`` writes another one.
    """
    from torchvision.models import resnet50

    from gloria.encoders.small_text import build_word_tokenizer, small_bert

    folder = tmp_path_factory.mktemp("published")
    tokenizer = build_word_tokenizer(["small left pleural effusion", "mild cardiomegaly no edema"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = resnet50()
        bert = small_bert(tokenizer, layers=4, width=32, heads=2)
        parts = {
            "img_encoder.global_embedder.weight": 0.02 * torch.randn(32, 2048),
            "img_encoder.global_embedder.bias": torch.randn(32),
            "img_encoder.local_embedder.weight": 0.03 * torch.randn(32, 1024, 1, 1),
            "text_encoder.model.pooler.dense.weight": torch.randn(32, 32),
            "text_encoder.model.pooler.dense.bias": torch.randn(32),
        }
        for name, statistics in backbone.named_buffers():
            if name.endswith("running_mean"):
                statistics.normal_(0, 0.1)
            elif name.endswith("running_var"):
                statistics.uniform_(0.8, 1.2)
    backbone.fc = torch.nn.Identity()
    bert.config.save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    parts |= {f"img_encoder.model.{name}": t for name, t in backbone.state_dict().items()}
    parts |= {f"text_encoder.model.{name}": t for name, t in bert.state_dict().items()}
    parts["text_encoder.model.embeddings.position_ids"] = torch.arange(128)[None]
    weights = {f"gloria.{name}": tensor for name, tensor in parts.items()}

    settings = {
        "phase": "pretrain",
        "model": {
            "gloria": {
                "local_loss_weight": 1.0,
                "global_loss_weight": 1.0,
                "temp1": 4.0,
                "temp2": 5.0,
                "temp3": 10.0,
            },
            "vision": {"model_name": "resnet_50", "freeze_cnn": False, "pretrained": True},
            "text": {
                "bert_type": str(folder / "bert"),
                "last_n_layers": 4,
                "aggregate_method": "sum",
                "norm": False,
                "embedding_dim": 32,
                "freeze_bert": False,
                "agg_tokens": True,
            },
        },
        "data": {"text": {"word_num": 97}, "image": {"imsize": 256}},
        "transforms": {"norm": "half", "random_affine": {"scale": [0.95, 1.05]}},
        "output_dir": "${phase}/run",
    }

    def write(
        path: Path, weights: object = weights, settings: object = settings, *, legacy: bool = False
    ) -> Path:
        """None = without settings."""
        with _others_classes() as (omegaconf, callbacks):
            content: dict[str, object] = {
                "epoch": 3,
                "state_dict": weights,
                "callbacks": {callbacks[name]: {"wait": 1} for name in callbacks},
                "optimizer_states": [
                    {
                        "state": defaultdict(dict, {0: {"step": 7}}),
                        "param_groups": [{"lr": np.float64(5e-5), "betas": (0.5, 0.999)}],
                    }
                ],
            }
            if settings is not None:
                content["hparams_type"] = omegaconf["DictConfig"]
                content["hyper_parameters"] = _wrap(omegaconf, settings, None)
            torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        return path

    return SimpleNamespace(
        file=write(folder / "published.ckpt"),
        weights=weights,
        settings=settings,
        bert=folder / "bert",
        write=write,
    )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """The hub, out of reach; ``hub(name, folder, commit)`` puts a saved model into its cache."""
    import huggingface_hub

    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    def put(name: str, folder: Path, commit: str, branch: str = "main") -> None:
        repository = cache / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / branch).write_text(commit)
        shutil.copytree(folder, repository / "snapshots" / commit)

    return put


@contextmanager
def _others_classes() -> Iterator[tuple[dict[str, type], dict[str, type]]]:
    """OmegaConf's classes and Lightning's callbacks by name, as far as a pickle sees them."""
    homes = {
        "ContainerMetadata": "omegaconf.base",
        "Metadata": "omegaconf.base",
        "DictConfig": "omegaconf.dictconfig",
        "ListConfig": "omegaconf.listconfig",
        "AnyNode": "omegaconf.nodes",
        "ModelCheckpoint": "pytorch_lightning.callbacks.model_checkpoint",
        "EarlyStopping": "pytorch_lightning.callbacks.early_stopping",
    }
    modules: dict[str, ModuleType] = {}
    classes = {}
    for name, home in homes.items():
        parts = home.split(".")
        for count in range(1, len(parts) + 1):
            module = ".".join(parts[:count])
            modules.setdefault(module, ModuleType(module))
        classes[name] = type(name, (), {"__module__": home})
        setattr(modules[home], name, classes[name])
    with patch.dict(sys.modules, modules):
        ours = {name: made for name, made in classes.items() if "omegaconf" in homes[name]}
        yield ours, {name: made for name, made in classes.items() if name not in ours}


def _wrap(classes: dict[str, type], value: object, parent: object) -> object:
    """A tree as OmegaConf holds it: nodes that know their parents, with metadata."""
    name = {dict: "DictConfig", list: "ListConfig"}.get(type(value), "AnyNode")
    node = classes[name]()
    metadata = classes["Metadata" if name == "AnyNode" else "ContainerMetadata"]()
    metadata.__dict__.update(ref_type=Any, object_type=None, optional=True, key=None)
    if name != "AnyNode":
        metadata.__dict__.update(object_type=type(value), resolver_cache=defaultdict(dict))
    node.__dict__.update(_parent=parent, _metadata=metadata)
    if isinstance(value, dict):
        content: object = {key: _wrap(classes, each, node) for key, each in value.items()}
    elif isinstance(value, list):
        content = [_wrap(classes, each, node) for each in value]
    else:
        node.__dict__["_val"] = value
        return node
    node.__dict__["_content"] = content
    return node


@pytest.fixture
def write_dicom():
    """Write a radiograph as DICOM; keywords are its elements."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    def write_dicom(path, pixels, *, bits=8, **elements):
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = SecondaryCaptureImageStorage
        dataset.SOPInstanceUID = generate_uid()
        dataset.Modality = "CR"
        if pixels is not None:
            deep = bits > 8
            dataset.Rows, dataset.Columns = pixels.shape
            dataset.SamplesPerPixel = 1
            dataset.PhotometricInterpretation = "MONOCHROME2"
            dataset.BitsAllocated = 16 if deep else 8
            dataset.BitsStored, dataset.HighBit = bits, bits - 1
            dataset.PixelRepresentation = int(pixels.min() < 0)
            dataset["PixelData"] = pydicom.DataElement("PixelData", "OW" if deep else "OB", b"")
            kind = ("<i2" if pixels.min() < 0 else "<u2") if deep else "u1"
            dataset.PixelData = pixels.astype(kind).tobytes()
        for name, value in elements.items():
            setattr(dataset, name, value)
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write_dicom
