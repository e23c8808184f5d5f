"""Train objectives (:data:`ROWS`) on the phantoms, several seeds each, and evaluate them alike.

    python benchmarks/study.py run --out runs/study --processes 2
    python benchmarks/study.py run --out runs/study --rows gloria,global --device cuda
    python benchmarks/study.py report --write     # benchmarks/results/study -> docs/study.md

A run that was stopped goes on where it stood: every (row, seed) has a file of its own, which every
task fills in as soon as it is done. With a seed change the training data, the test data, the
weights, and the order of training, so the spread over seeds is that of the whole experiment; rows
of one seed share their data.

The figures show that training works and where words attend. They are no evidence about real
radiographs, nor for or against any paper.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import study_report
import torch
from measure import device_name

import gloria
from gloria.data import PhantomPairs
from gloria.data.phantom import PhantomItem, phantom_item
from gloria.data.transfer import TransferData
from gloria.errors import GloriaError, NonFiniteLossError, OptionError
from gloria.evaluation.phantoms import evaluate_grounding
from gloria.files import write_text
from gloria.losses import GlobalLocalContrastiveLoss
from gloria.model import GLoRIA
from gloria.training.loop import TrainingRecipe, train
from gloria.training.randomness import isolated
from gloria.training.small import small_model
from gloria.training.transfer import PHANTOM_UNET, TransferSettings, evaluate_task
from gloria.visualize import save_figure
from gloria.weights import load_model, save_model

RESULTS = Path(__file__).parent / "results" / "study"
PAGE = Path(__file__).parents[1] / "docs" / "study.md"
Figures = dict[str, Any]


class Row(NamedTuple):
    """What is trained; everything that is not said here is the same for all rows.

    Attributes:
        about: what the tables say of it.
        options: of :func:`~gloria.training.small.small_model`.
        trained: False = evaluated as it was made.
    """

    about: str
    options: dict[str, Any]
    trained: bool = True


ROWS = {
    "gloria": Row("GLoRIA: global and local, `stable` preset", {}),
    "double-softmax": Row(
        "the same with the published code's attention, over words and then regions",
        {
            "preset": "stable",
            "loss_options": {"local_options": {"attention": "words_then_regions"}},
        },
    ),
    "global": Row("the global loss alone", {"loss": "global_contrastive", "preset": "stable"}),
    "local": Row("the local loss alone", {"loss": "local_contrastive", "preset": "stable"}),
    "paper": Row("GLoRIA with the paper's constants", {"preset": "paper"}),
    "official": Row("GLoRIA with the published code's constants", {"preset": "official"}),
    "sigmoid": Row("SigLIP's loss, on pooled features", {"loss": "sigmoid"}),
    "sparc": Row("SPARC", {"loss": "sparc"}),
    "mgca": Row("MGCA, without its prototypes", {"loss": "mgca"}),
    "filip": Row("FILIP, without a global part", {"loss": "filip"}),
    "random": Row("untrained", {}, trained=False),
}


@dataclass(frozen=True)
class Sizes:
    """How large the study is.

    Attributes:
        train: phantoms to train on, and to probe with.
        val: phantoms on which the tasks choose.
        test: phantoms that show any findings: for grounding and the supervised tasks.
        per_class: images of each of the five classes in the retrieval and zero-shot set.
        steps: training steps.
        contrast: of the findings; at 1.7, the demo's, most figures of a trained row are near 1.
    """

    train: int = 4000
    val: int = 200
    test: int = 800
    per_class: int = 100
    steps: int = 700
    contrast: float = 1.25

    def splits(self) -> dict[str, int]:
        """Split: how many phantoms of it are drawn."""
        return {
            "train": self.train,
            "val": self.val,
            "test": self.test,
            f"test_5x{self.per_class}": 5 * self.per_class,
        }

    @property
    def gallery(self) -> str:
        """The split of the retrieval and zero-shot set."""
        return f"test_5x{self.per_class}"


class Job(NamedTuple):
    """One row with one seed."""

    row: str
    seed: int
    sizes: Sizes
    out: Path
    device: str
    cache: Path
    tasks: tuple[str, ...] = ()
    deadline: float = math.inf

    def out_of_time(self) -> bool:
        """Whether nothing more should be begun."""
        return time.time() > self.deadline

    @property
    def file(self) -> Path:
        """Where its figures are."""
        return self.out / f"{self.row}-{self.seed}.json"

    @property
    def model(self) -> Path:
        """Where its model is."""
        return self.out / "models" / f"{self.row}-{self.seed}"

    @property
    def settings(self) -> Figures:
        """What must be equal for figures to be of this job."""
        row = ROWS[self.row]
        recipe = asdict(self.recipe) if row.trained else None
        settings = {"options": row.options, "recipe": recipe, "sizes": asdict(self.sizes)}
        as_written: Figures = json.loads(json.dumps(settings))
        return as_written

    @property
    def recipe(self) -> TrainingRecipe:
        """How it is trained: as the demo."""
        return TrainingRecipe(steps=self.sizes.steps, seed=self.seed)


Data = dict[str, list[PhantomItem]]
Task = Callable[[GLoRIA, Data, Job], Figures]


def transfer(task: str, model: GLoRIA, data: Data, job: Job) -> Figures:
    """One of the paper's tables; of the supervised ones, a draw of labels of the job's seed."""
    phantoms = TransferData.of_phantoms(
        data["train"], data["val"], data["test"], data[job.sizes.gallery]
    )
    settings = TransferSettings(
        seeds=1,
        seed=job.seed,
        resamples=1,  # the spread over seeds is what counts here
        **PHANTOM_UNET,
    )
    details: Figures = evaluate_task(task, model, phantoms, settings)["details"]
    return details


def grounding(model: GLoRIA, data: Data, job: Job) -> Figures:
    """Where findings' words attend, beside the control of another image.

    A model whose loss attends to nothing is read with GLoRIA's attention. If its projections of
    regions and words were never trained, that is one more control.
    """
    own = any(hasattr(part, "attention_maps") for part in model.loss.modules())
    if not own:
        model.loss = GlobalLocalContrastiveLoss.from_preset("stable")
    return {"own_attention": own, **evaluate_grounding(model, data["test"])}


TASKS: dict[str, Task] = {
    "retrieval": partial(transfer, "retrieval"),
    "zero-shot": partial(transfer, "zero-shot"),
    "grounding": grounding,
    "classification": partial(transfer, "classification"),
    "segmentation": partial(transfer, "segmentation"),
}


def run_job(job: Job) -> str:
    """Train and evaluate what is not there yet.

    Returns:
        What happened, in a line.
    """
    if job.out_of_time():
        return "left for another run"
    start = time.perf_counter()
    result = read_result(job)
    missing = missing_tasks(job, result)
    data = load_data(job.cache, job.seed)
    if not (job.model / "config.json").is_file():
        try:
            train_model(job, data, result)
        except NonFiniteLossError as error:  # a finding about the row, not a crash
            result["failed"] = str(error)
            write_result(job, result)
            return f"failed: {error}"
    for name in missing:
        if job.out_of_time():
            return f"{', '.join(missing[missing.index(name) :])} left for another run"
        # loaded anew, so that no task sees what another did to the model
        model = load_model(job.model, device=job.device)
        begin = time.perf_counter()
        result[name] = TASKS[name](model, data, job)
        result["seconds"][name] = round(time.perf_counter() - begin, 1)
        write_result(job, result)
    return f"{time.perf_counter() - start:.0f} s"


def missing_tasks(job: Job, result: Figures) -> list[str]:
    """What is still to evaluate; nothing of a row that failed."""
    if "failed" in result:
        return []
    return [name for name in job.tasks if name not in result]


def train_model(job: Job, data: Data, result: Figures) -> None:
    """Make and train the model, and save it."""
    row = ROWS[job.row]
    pairs = PhantomPairs(data["train"])
    with isolated(job.seed):
        model = small_model(pairs.reports, **row.options)
    model.to(job.device).eval()
    if row.trained:
        begin = time.perf_counter()
        history = train(model, pairs, job.recipe)
        result["seconds"]["training"] = round(time.perf_counter() - begin, 1)
        last = [record["loss"] for record in history[-50:]]
        result["loss"] = {"first": history[0]["loss"], "last": sum(last) / len(last)}
    write_result(job, result)
    save_model(model, job.model)


def read_result(job: Job) -> Figures:
    """What is known of a job, or the head of its file."""
    if not job.file.is_file():
        machine = {
            "device": device_name(job.device),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "gloria": gloria.__version__,
        }
        head = {"row": job.row, "seed": job.seed, "settings": job.settings, "machine": machine}
        return {**head, "seconds": {}}
    result: Figures = json.loads(job.file.read_text(encoding="utf-8"))
    if result["settings"] != job.settings:
        raise OptionError(
            f"{job.file} has other settings, {result['settings']}; now they are {job.settings}. "
            f"Give another --out, or delete it with its model."
        )
    return result


def write_result(job: Job, result: Figures) -> None:
    """Whole, or not at all."""
    write_text(job.file, json.dumps(result, indent=1) + "\n")


def draw_data(cache: Path, seeds: Iterable[int], sizes: Sizes, pool: ProcessPoolExecutor) -> None:
    """Draw every seed's phantoms once, in all processes, into a file that they all read."""
    for seed in seeds:
        data = {}
        for split, count in sizes.splits().items():
            draw = partial(phantom_item, split, seed=seed, contrast=sizes.contrast)
            drawn = pool.map(draw, range(count), chunksize=64)
            data[split] = list(drawn)
        cache_file(cache, seed).write_bytes(pickle.dumps(data))


@lru_cache(maxsize=1)
def load_data(cache: Path, seed: int) -> Data:
    """The phantoms of a seed; jobs of one seed come after one another."""
    data: Data = pickle.loads(cache_file(cache, seed).read_bytes())
    return data


def cache_file(cache: Path, seed: int) -> Path:
    """Where a seed's phantoms are."""
    return cache / f"{seed}.pickle"


def run(args: argparse.Namespace) -> int:
    """Everything that is not there yet."""
    sizes = Sizes(**{name: getattr(args, name) for name in asdict(Sizes())})
    for what, given, known in (("rows", args.rows, ROWS), ("tasks", args.tasks, TASKS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise OptionError(f"{what} must be of {', '.join(known)}; got {', '.join(unknown)}.")
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    args.out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    deadline = time.time() + 60 * args.minutes
    # a child reads it when it imports its libraries
    os.environ["OMP_NUM_THREADS"] = "1"
    with (
        tempfile.TemporaryDirectory(dir=args.out, prefix=".phantoms-") as cache,
        ProcessPoolExecutor(
            args.processes,
            mp_context=get_context("spawn"),  # CUDA does not survive a fork
            initializer=torch.set_num_threads,
            initargs=(1,),
        ) as pool,
    ):
        jobs = [
            Job(row, seed, sizes, args.out, device, Path(cache), tuple(args.tasks), deadline)
            for seed in range(args.first_seed, args.first_seed + args.seeds)
            for row in args.rows
        ]
        todo = [job for job in jobs if missing_tasks(job, read_result(job))]
        print(f"{len(todo)} of {len(jobs)} to do, on {device_name(device)}", flush=True)
        seeds = dict.fromkeys(job.seed for job in todo)
        draw_data(Path(cache), seeds, sizes, pool)
        print(f"phantoms of {len(seeds)} seeds drawn: {since(begin)}", flush=True)
        futures = {pool.submit(run_job, job): job for job in todo}
        failed = 0
        for number, future in enumerate(as_completed(futures), start=1):
            job = futures[future]
            error = future.exception()
            failed += error is not None
            said = future.result() if error is None else f"{type(error).__name__}: {error}"
            place = f"{number}/{len(todo)}"
            print(f"{place} {job.row}, seed {job.seed}: {said}; {since(begin)}", flush=True)
            collect(args.out)
    return 1 if failed else 0


def collect(folder: Path) -> None:
    """All results in one file, whole or not at all: what the report reads."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    target = folder / "collected" / "results.json"
    target.parent.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(result) for result in results)
    write_text(target, f"[\n{lines}\n]\n")


def report(args: argparse.Namespace) -> int:
    """The page of what was measured, printed or written into the docs with its pictures."""
    results = study_report.load(args.results, list(ROWS))
    page = study_report.page(results, {name: row.about for name, row in ROWS.items()})
    if not args.write:
        print(page)
        return 0
    text = args.page.read_text(encoding="utf-8")
    write_text(args.page, study_report.replace_between(text, page))
    if results:
        save_figure(study_report.draw(results), args.page.with_suffix(".png"))
        labels = args.page.with_name(f"{args.page.stem}-labels.png")
        save_figure(study_report.draw_labels(results), labels)
    return 0


def since(begin: float) -> str:
    """Seconds up to now."""
    return f"{time.perf_counter() - begin:.0f} s so far"


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="train and evaluate what is not there yet")
    running.add_argument("--out", type=Path, default=Path("runs/study"))
    running.add_argument("--rows", type=lambda text: text.split(","), default=list(ROWS))
    running.add_argument("--tasks", type=lambda text: text.split(","), default=list(TASKS))
    running.add_argument("--seeds", type=int, default=3, help="how many")
    running.add_argument("--first-seed", type=int, default=0)
    running.add_argument("--processes", type=int, default=1, help="each with one thread")
    running.add_argument("--device", default="auto")
    running.add_argument(
        "--minutes", type=float, default=math.inf, help="begin nothing more after these"
    )
    for name, value in asdict(Sizes()).items():
        running.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    running.set_defaults(function=run)
    reporting = commands.add_parser("report", help="the tables and pictures of what was measured")
    reporting.add_argument("--results", type=Path, default=RESULTS)
    reporting.add_argument("--write", action="store_true", help="into the page; default: print")
    reporting.add_argument("--page", type=Path, default=PAGE)
    reporting.set_defaults(function=report)
    return top


def main() -> int:
    """Run a command."""
    args = parser().parse_args()
    try:
        code: int = args.function(args)
    except GloriaError as error:
        print(f"study: {error}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
