"""Features of a data set's images, kept on disk, so that each image is encoded once.

A store is a folder::

    index.json          what the features are of: the model, the images and how they were prepared
    <name>.safetensors  the features of some images: pooled, regions and, if any, region_mask

Files are only ever added, and each write is whole or not there: an encoding that was stopped goes
on where it stood, one that was killed where it stood half a minute before. Regions take most of the
space: of each image, 4 bytes for each number.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from os.path import abspath
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gloria.checks import check_integer
from gloria.data.loading import load_batches
from gloria.data.radiographs import Radiographs
from gloria.errors import DataError, DtypeError, OptionError
from gloria.evaluation.features import encode_images, select_images
from gloria.evaluation.settings import describe_changes
from gloria.files import signature, write_file, write_text
from gloria.mini_batches import join_images
from gloria.model import GLoRIA
from gloria.types import ImageFeatures

FORMAT = 2
"""Version of the folder's layout, and of how images are prepared: 1 did not read EXIF."""

SECONDS = 30
"""Between writings of the index: what a kill may cost."""


class Row(NamedTuple):
    """Where the features of an image are, and the file as it was when it was encoded."""

    size: int
    mtime: int
    shard: str
    number: int


class StoredImages:
    """Features of images on disk; what :func:`store_images` returns.

    Attributes:
        ids: of the images that have features, in the data set's order.
        paths: their files.
        encoded: how many were encoded now; all others had been before.
        broken: why the other images have no features, one line each.
    """

    def __init__(
        self,
        folder: Path,
        model: GLoRIA,
        grid: tuple[int, int],
        rows: Mapping[str, Row],
        data: Radiographs,
        encoded: int,
        broken: Sequence[str],
    ) -> None:
        self._folder = folder
        self._weights = _sample(model)
        self._grid = grid
        kept = [record for record in data.records if abspath(record.path) in rows]
        self._rows = [rows[abspath(record.path)] for record in kept]
        self.ids = [record.id for record in kept]
        self.paths = [record.path for record in kept]
        self.encoded = encoded
        self.broken = tuple(broken)

    def __len__(self) -> int:
        return len(self.ids)

    def is_of(self, model: GLoRIA) -> bool:
        """Whether a model has the weights of the one that the store was opened with."""
        return self._weights == _sample(model)

    def pooled(self) -> Iterator[tuple[list[int], Tensor]]:
        """The pooled vectors of all images, some at a time: their indices, and ``(image, dim)``."""
        for shard, indices in self._by_shard(range(len(self))).items():
            (pooled,) = self._read(shard, indices, "pooled")
            yield indices, pooled

    def features(self, indices: Sequence[int]) -> ImageFeatures:
        """The features of some images, in the order of ``indices``, on the CPU.

        Args:
            indices: into ``ids``, at least one.

        Raises:
            DataError: there is none, or the store is damaged.
        """
        indices = [int(index) for index in indices]  # of a tensor no two are equal as keys
        if not indices:
            raise DataError("indices must hold at least one; there is nothing to read.")
        parts, order = [], []
        for shard, some in self._by_shard(indices).items():
            pooled, regions, *mask = self._read(shard, some, "pooled", "regions", "region_mask")
            parts.append(ImageFeatures(pooled, regions, self._grid, *mask))
            order += some
        place = {index: number for number, index in enumerate(order)}
        return select_images(join_images(parts), [place[index] for index in indices])

    def _by_shard(self, indices: Sequence[int]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for index in dict.fromkeys(indices):
            found.setdefault(self._rows[index].shard, []).append(index)
        return found

    def _read(self, shard: str, indices: Sequence[int], *names: str) -> list[Tensor]:
        """What a shard has of some images; it may have no ``region_mask``."""
        numbers = [self._rows[index].number for index in indices]
        try:
            with safe_open(self._folder / shard, framework="pt") as file:
                masked = "region_mask" in file.keys()  # noqa: SIM118, it can't be iterated
                return [
                    file.get_tensor(name)[numbers]
                    for name in names
                    if masked or name != "region_mask"
                ]
        except (SafetensorError, OSError, IndexError) as cause:
            raise _damaged(self._folder, f"{shard}: {cause}") from cause


def store_images(
    folder: str | Path,
    model: GLoRIA,
    data: Radiographs,
    *,
    fingerprint: str,
    batch_size: int = 64,
    shard_size: int = 256,
    workers: int = 0,
    progress: Callable[[int], Any] = lambda done: None,
) -> StoredImages:
    """Encode the images that a folder does not have yet, or that have changed, and keep them there.

    An image has changed if its file's size or time of modification has. What the folder has of
    other images stays.

    Args:
        folder: where the features are kept; made if it is missing.
        model: any; evaluated in eval mode, its modes are left as they were.
        data: the images, of files, by which a change is told: those of any
            :class:`~gloria.data.Radiographs`.
        fingerprint: of the model, as :func:`~gloria.weights.hash_model` gives it.
        batch_size: images encoded at a time; it does not change the result.
        shard_size: images read and written at a time.
        workers: processes that load images.
        progress: called with the number of images that are done since the last call.

    Returns:
        The features of all images of ``data`` that can be read, with its ``bits``; the others are
        listed.

    Raises:
        DataError: the folder holds the features of another model, or of images prepared in another
            way, which are left alone; it is damaged; none of the first ``shard_size`` images can
            be read; or an image's features are not finite.
        OSError: the folder can't be written to.
        DtypeError: ``data`` is something else than :class:`~gloria.data.Radiographs`.
        OptionError: ``batch_size`` or ``shard_size`` is below 1, or ``workers`` below 0.
    """
    if not isinstance(data, Radiographs):
        raise DtypeError(
            f"data must be Radiographs, such as gloria.data.ImageFolder or ImageReportTable, whose "
            f"images are files; got {type(data).__name__}. Of some of their images, take "
            f"data.select(ids)."
        )
    check_integer("shard_size", shard_size, 1)
    check_integer("batch_size", batch_size, 1)
    check_integer("workers", workers, 0)
    folder = Path(folder)
    settings = {
        "model": fingerprint,
        "image_size": list(data.size),
        "channels": data.channels,
        "bits": data.bits,
        "window": None if data.window is None else list(data.window),
    }
    grid, rows = _open(folder, settings)
    paths = [abspath(record.path) for record in data.records]
    now = {path: signature(path) for path in paths}
    missing = {
        path: index  # of one of its rows, if a film has several
        for index, path in enumerate(paths)
        if path not in rows or (rows[path].size, rows[path].mtime) != now[path]
    }
    for path in missing:
        rows.pop(path, None)
    progress(len(data) - len(missing))
    any_yet = len(missing) < len(now)
    broken: list[str] = []
    loaded = zip(missing, _load(data, list(missing.values()), workers), strict=True)
    named, written = len(rows), time.monotonic()
    try:
        while some := list(islice(loaded, shard_size)):
            images = {path: found for path, found in some if isinstance(found, Tensor)}
            faults = [found for _, found in some if isinstance(found, str)]
            broken += faults
            progress(len(faults))
            if not images and not any_yet:  # the folder or an option is wrong: better told now
                raise DataError(
                    f"none of the first {len(broken)} images can be read; first: {broken[0]}"
                )
            if not images:
                continue
            any_yet = True
            features = encode_images(model, images.values(), batch_size, progress=progress)
            _check_finite(features, list(images))
            grid = features.grid
            shard = _write_shard(folder, features)
            rows |= {path: Row(*now[path], shard, number) for number, path in enumerate(images)}
            # it names all images: after each shard, most of the work would be writing it again
            if time.monotonic() - written >= SECONDS:
                _write_index(folder, settings, grid, rows)
                named, written = len(rows), time.monotonic()
    finally:
        if len(rows) > named:
            _write_index(folder, settings, grid, rows)
    return StoredImages(folder, model, grid, rows, data, len(missing) - len(broken), broken)


def _sample(model: GLoRIA) -> list[Any]:
    """Some numbers of each weight, which tell models apart; all of them would take seconds."""
    weights = [each for each in model.state_dict().values() if isinstance(each, Tensor)]
    return [each.flatten()[:: max(1, each.numel() // 8)].tolist() for each in weights]


def _load(data: Radiographs, indices: Sequence[int], workers: int) -> Iterator[Tensor | str]:
    """Images; in place of one that can't be read, why."""
    each = [[index] for index in indices]
    workers = min(workers, len(indices))
    for found in load_batches(_Readable(data), each, itemgetter(0), workers=workers):
        # what another process loaded keeps a file open
        yield found if isinstance(found, str) else found.clone()


class _Readable:
    """The images of a data set; in place of one that can't be read, why."""

    def __init__(self, data: Radiographs) -> None:
        self.data = data

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.data[index].image
        except (DataError, OptionError) as fault:  # no bits fit every film of a mixed folder
            return str(fault)


def _open(folder: Path, settings: dict[str, Any]) -> tuple[tuple[int, int], dict[str, Row]]:
    """The grid and rows of a store, which is made if it is missing."""
    index = folder / "index.json"
    if not index.is_file():
        if folder.exists() and any(folder.iterdir()):
            raise DataError(f"{folder} must be empty, or hold features; it holds something else.")
        folder.mkdir(parents=True, exist_ok=True)
        _write_index(folder, settings, (0, 0), {})
        return (0, 0), {}
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
        version, before = found["format"], found["settings"]
        height, width = found["grid"]
        rows = {name: Row(*row) for name, row in found["images"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise _damaged(folder, f"index.json: {type(cause).__name__}: {cause}") from cause
    if version != FORMAT:
        raise DataError(
            f"{folder} has features in format {version}, in which images were prepared otherwise; "
            f"this version of gloria writes format {FORMAT}. Choose another folder, or delete this "
            f"one."
        )
    if changed := describe_changes(before, settings):
        raise DataError(
            f"{folder} has features of another model or of images prepared otherwise: {changed}. "
            f"Choose another folder, or delete this one."
        )
    return (height, width), rows


def _write_shard(folder: Path, features: ImageFeatures) -> str:
    """Write features, and give the file's name."""
    tensors = {"pooled": features.pooled, "regions": features.regions}
    if features.region_mask is not None:
        tensors["region_mask"] = features.region_mask
    content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    name = f"{uuid4().hex[:12]}.safetensors"
    write_file(folder / name, lambda draft: draft.write_bytes(content))
    return name


def _write_index(
    folder: Path, settings: dict[str, Any], grid: tuple[int, int], rows: Mapping[str, Row]
) -> None:
    index = {"format": FORMAT, "settings": settings, "grid": grid, "images": rows}
    write_text(folder / "index.json", json.dumps(index) + "\n")


def _check_finite(features: ImageFeatures, paths: Sequence[str]) -> None:
    regions = features.regions
    if features.region_mask is not None:
        regions = regions.where(features.region_mask[..., None], 0)
    finite = features.pooled.isfinite().all(1) & regions.isfinite().flatten(1).all(1)
    if not finite.all():
        first = paths[int((~finite).nonzero()[0])]
        raise DataError(f"the model's features of {first} are not finite; is it trained?")


def _damaged(folder: Path, why: str) -> DataError:
    return DataError(f"{folder} is damaged ({why}). Delete it, and its images are encoded again.")
