"""Plan a batch size: what the local loss costs on each backend, counted before anything runs.

For instance the published setting, whose reports fill 22 of their 97 positions on average:

  gloria plan --images 48 --regions 361 --words 97 --mean-words 22 --dim 768

Operations are those of the matrix products. Memory comes on top of the inputs, the result and their
gradients: what the memory budget bounds, and some numbers per image and word position, padding
included, which it does not. Times are lower bounds, the larger of operations / rate and bytes /
bandwidth of a device in the dtype that a backend multiplies in (all but triton widen half precision
to float32): no measurements, and no kernel reaches them. The tiles of chunked are taken to stay in
a cache, so its bytes are the most optimistic.

The device is an NVIDIA H200, whatever --device says, until you give the rates of yours: what its
large matrix products reach, and copies within its memory. For instance 60 TFLOP/s and 900 GB/s:

  gloria plan --images 48 --regions 361 --words 97 --dim 768 --tflops 60 --bandwidth 900
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

OWN = "your device"
"""What a device is called whose rates are given."""

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    sizes = parser.add_argument_group("sizes")
    sizes.add_argument("--images", type=int, required=True, metavar="B", help="images of a batch")
    sizes.add_argument(
        "--regions", type=_count, required=True, metavar="M", help="of an image, such as 361, 19x19"
    )
    sizes.add_argument("--texts", type=int, metavar="N", help="texts; default: as many as images")
    sizes.add_argument("--words", type=int, required=True, metavar="W", help="positions per text")
    sizes.add_argument(
        "--mean-words", type=float, metavar="L", help="of them real, on average; default: all"
    )
    sizes.add_argument("--dim", type=int, required=True, metavar="D", help="of the embeddings")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the embeddings")
    parser.add_argument(
        "--attention",
        choices=("regions", "words_then_regions"),
        default="regions",
        help="the softmaxes: the paper's, or those of the published code",
    )
    parser.add_argument(
        "--memory-budget",
        type=int,
        metavar="MIB",
        help="of working memory, in 2**20 bytes; default: 256 for a CPU, 512 elsewhere",
    )
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="whose backend auto takes: cpu, cuda, ..."
    )
    parser.add_argument(
        "--tflops", type=float, metavar="T", help="rate of your device, in 1e12 operations/s"
    )
    parser.add_argument(
        "--bandwidth", type=float, metavar="GB", help="of its memory, in 1e9 bytes/s; both or none"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    facts = plan(args)
    print(json.dumps(facts, indent=2) if args.json else render(facts))
    return 0


def plan(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that ``gloria plan`` shows, as JSON-serialisable data."""
    import torch

    from gloria.checks import check_integer, check_positive
    from gloria.errors import OptionError
    from gloria.matching import MatchingOptions, Problem, choose_backend, explain_backends
    from gloria.matching.cost import COUNTED, DEVICES, Device, count
    from gloria.matching.dispatch import BACKENDS
    from gloria.matching.problem import memory_budget_on
    from gloria.training.devices import parse_device, pick_device

    sizes = {name: getattr(args, name) for name in ("images", "regions", "texts", "words", "dim")}
    if args.texts is None:
        sizes["texts"] = args.images
    for name, size in sizes.items():
        check_integer(name, size, 1)
    mean_words = args.words if args.mean_words is None else args.mean_words
    check_positive("mean-words", mean_words)
    if mean_words > args.words:
        raise OptionError(f"mean-words must be at most words = {args.words}; got {mean_words}.")
    # a device to plan for need not be here
    best = pick_device().type
    device = best if args.device == "auto" else parse_device(args.device).type
    budget = memory_budget_on(device, None)
    if args.memory_budget is not None:
        check_integer("memory-budget", args.memory_budget, 1)
        budget = args.memory_budget * 2**20
    own = None
    if (args.tflops is None) != (args.bandwidth is None):
        raise OptionError("tflops and bandwidth must be given together, or neither.")
    if args.tflops is not None:
        check_positive("tflops", args.tflops)
        check_positive("bandwidth", args.bandwidth)
        own = Device(1e12 * args.tflops, 1e9 * args.bandwidth)

    problem = Problem(
        **sizes,
        dtype=getattr(torch, DTYPES[args.dtype]),
        device=device,
        options=MatchingOptions(args.attention, 1 / 4, 1 / 5, "logsumexp", budget),
        elsewhere=device not in (best, "cpu"),
    )

    def devices(backend: str) -> dict[str, Device]:
        if own:
            return {OWN: own}
        dtype = problem.dtype
        if not BACKENDS[backend].TAKES_HALF_PRECISION:
            dtype = torch.promote_types(dtype, torch.float32)
        return {label: rates[dtype] for label, rates in DEVICES.items() if dtype in rates}

    backends = {}
    for name in COUNTED:
        cost = count(problem, name, round(sizes["texts"] * mean_words))
        backends[name] = {
            "forward": cost.forward._asdict(),
            "backward": cost.backward._asdict(),
            "memory": cost.memory,
            "least_seconds": {
                label: {
                    "forward": cost.forward.seconds(device),
                    "backward": cost.backward.seconds(device),
                }
                for label, device in devices(name).items()
            },
        }
    return {
        **sizes,
        "mean_words": mean_words,
        "dtype": args.dtype,
        "attention": args.attention,
        "memory_budget": budget,
        "device": device,
        "elsewhere": problem.elsewhere,
        "auto": choose_backend(problem),
        "cannot_run": {name: why for name, why in explain_backends(problem).items() if why},
        "backends": backends,
    }


def _count(text: str) -> int:
    """A number, or the rows and columns of a grid."""
    try:
        return math.prod(map(int, text.split("x")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, or as 19x19; got {text!r}") from None


def render(facts: dict[str, Any]) -> str:
    """The plan as text."""
    from gloria.evaluation.tables import align

    devices = list(next(iter(facts["backends"].values()))["least_seconds"])
    header = ["", "forward", "", "backward", "", "peak memory"]
    below = ["backend", "TFLOP", "GB moved", "TFLOP", "GB moved", "MiB"]
    for device in devices:
        header += [device, ""]
        below += ["forward ≥ ms", "backward ≥ ms"]
    rows = [header, below]
    for name, cost in facts["backends"].items():
        row = [name]
        for half in ("forward", "backward"):
            row += [
                _figure(cost[half]["operations"] / 1e12, 3),
                _figure(cost[half]["bytes"] / 1e9, 2),
            ]
        row.append(_figure(cost["memory"] / 2**20, 0))
        for least in cost["least_seconds"].values():
            row += [_figure(1e3 * least[half], 3) for half in ("forward", "backward")]
        rows.append(row)
    lines = [
        f"{facts['images']:,} images of {facts['regions']:,} regions, {facts['texts']:,} texts of "
        f"{facts['words']:,} words ({facts['mean_words']:g} real on average), "
        f"dim {facts['dim']:,}, {facts['dtype']}, attention {facts['attention']!r}",
        "",
        align(rows),
        "",
        f"backend='auto' takes {facts['auto']!r} on {facts['device']}"
        + (", which is not here: taken to have all it needs." if facts["elsewhere"] else ", here."),
        *(f"{name!r} cannot run: {' '.join(why)}" for name, why in facts["cannot_run"].items()),
        "Memory is beside inputs, result and gradients.",
        _about_times(devices, facts["dtype"]),
    ]
    return "\n".join(lines)


def _about_times(devices: list[str], dtype: str) -> str:
    """What the columns of times are, and how to have others."""
    own = "give those of your device with --tflops and --bandwidth."
    if not devices:
        return f"No times, for want of rates in {dtype}: {own}"
    bounds = "≥ are lower bounds by count, no measurements"
    if devices == [OWN]:
        return f"{bounds}."
    return f"{bounds}, at the rates of {' and '.join(devices)}; {own}"


def _figure(value: float, decimals: int) -> str:
    """With so many decimals or, where these would show less of it, with two digits."""
    return f"{value:,.{decimals}f}" if value >= 10 ** (1 - decimals) else f"{value:.2g}"
