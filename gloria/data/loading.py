"""Batches of items, loaded here or by other processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.queues import Queue
from pickle import PicklingError
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gloria.data.images import check_image
from gloria.errors import DataError, DtypeError, GloriaError, reason

Collate = Callable[[list[Any]], Any]


class HasImage(Protocol):
    """An item with an image, whatever else it brings."""

    @property
    def image(self) -> Tensor:
        """``(channel, height, width)``, float32 in [0, 1]."""


def load_batches(
    items: Any,
    batches: Iterable[Sequence[int]],
    collate: Collate,
    *,
    workers: int = 0,
    seed: int = 0,
) -> Iterator[Any]:
    """Batches of items, in order.

    Args:
        items: read by index.
        batches: the indices of each.
        collate: makes a batch of a list of items.
        workers: processes that load items.
        seed: of whatever random numbers they draw.

    Raises:
        GloriaError: what reading an item raises, as it is.
        DataError: a process that loads was killed, or could not begin. On macOS, Windows and from
            Python 3.14 on it is not forked: it imports the script that runs, which needs its
            ``if __name__ == "__main__":``, and the items are pickled.
    """
    loader: DataLoader[Any] = DataLoader(
        _Batches(items, collate),
        sampler=batches,
        batch_size=None,  # each item is a batch
        num_workers=workers,
        collate_fn=_unchanged,
        generator=torch.Generator().manual_seed(seed),  # or it draws from the global one
        persistent_workers=workers > 0,
        worker_init_fn=_begin_loading,
    )
    try:
        with torch.device("cpu"):  # it draws a seed, by that generator
            loaded = iter(loader)
    except (AttributeError, TypeError, PicklingError) as cause:
        if not workers:
            raise
        raise DataError(
            f"items can't be sent to a process that loads them ({reason(cause)}). Define their "
            f"class at the top of a module, or load in this process: workers=0."
        ) from cause
    try:
        for batch in loaded:
            if isinstance(batch, GloriaError):
                raise batch
            yield batch
    except RuntimeError as cause:
        # torch has no class for it; what an item raised begins otherwise
        if not str(cause).startswith("DataLoader worker (pid"):
            raise
        raise DataError(
            f"a process that loads items ended ({reason(cause)}). Too little memory, or shared "
            f"memory? Or does a script that runs lack its 'if __name__ == \"__main__\":'? "
            f"workers={workers} were asked for; 0 load in this process."
        ) from cause


def stack_images(items: Sequence[HasImage]) -> Tensor:
    """The images of items, ``(image, channel, height, width)``, in float32.

    Raises:
        DtypeError, ShapeError, DataError: one is no floating-point image in [0, 1], or an item has
            none; or they are not all of one shape.
    """
    for item in items:
        if not hasattr(item, "image"):  # as the letters of a path have none
            raise DtypeError(
                f"an item must have an attribute image, such as gloria.data.ImageReport(image, "
                f"report); got {type(item).__name__}. gloria.data.ImageReportTable(path, size=...) "
                f"reads a CSV file."
            )
    images: list[Any] = [item.image for item in items]
    for image in images:
        check_image("image of an item", image)
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise DataError(f"images of one batch must have one shape; got {sorted(shapes)}.")
    return torch.stack(images).float()


class _Batches(Dataset[Any]):
    """Batches by the indices of their items.

    An error is returned, for the main process to raise: a loading process would wrap it in the
    text of its own traceback.
    """

    def __init__(self, items: Any, collate: Collate) -> None:
        self.items = items
        self.collate = collate

    def __getitem__(self, indices: Sequence[int]) -> Any:
        try:
            return self.collate([self.items[index] for index in indices])
        except GloriaError as error:
            return error


def _unchanged(batch: Any) -> Any:
    return batch


def _begin_loading(worker: int) -> None:
    """What a loading process does first."""
    # Ctrl-C reaches all processes of a terminal; when to stop is for the first one to say
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # it would only be printed, and the batch waited for without end
    Queue._on_queue_feeder_error = staticmethod(_end_loading)  # type: ignore[attr-defined]


def _end_loading(cause: Exception, batch: Any) -> None:
    """A batch can't be sent, as where shared memory is full: the process that waits is told."""
    try:
        print(reason(cause), file=sys.stderr, flush=True)
    finally:
        os._exit(1)
