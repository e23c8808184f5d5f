"""Show what a bug report needs: versions, devices, matching backends, registered names, plugins."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import warnings
from collections.abc import Iterable
from contextlib import redirect_stdout
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import gloria
from gloria.catalog import Catalog, default_catalog
from gloria.errors import PluginWarning, describe
from gloria.plugins import DISABLE, PluginRecord
from gloria.registry import describe_target

# distribution: module
PACKAGES = {
    "torch": "torch",
    "einops": "einops",
    "numpy": "numpy",
    "pluggy": "pluggy",
    "safetensors": "safetensors",
    "timm": "timm",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "open_clip_torch": "open_clip",
    "huggingface_hub": "huggingface_hub",
    "torchmetrics": "torchmetrics",
    "pillow": "PIL",
    "pydicom": "pydicom",
    "pyyaml": "yaml",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "matplotlib": "matplotlib",
    "tqdm": "tqdm",
    "triton": "triton",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``gloria info``."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--check",
        action="store_true",
        help="import every package to find installed but broken ones (takes half a minute)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    with redirect_stdout(sys.stderr):  # a plugin that prints must not end up in the JSON
        facts = collect(default_catalog(), check=args.check)
    print(json.dumps(facts, indent=2) if args.json else render(facts))
    return 0


def collect(catalog: Catalog, check: bool = False) -> dict[str, Any]:
    """Everything that ``gloria info`` shows, as JSON-serialisable data."""
    with warnings.catch_warnings():
        # faulty plugins are part of the report
        warnings.filterwarnings("ignore", "plugin ", PluginWarning)
        plugins = catalog.plugins()
    return {
        "versions": versions(check),
        "devices": devices(),
        **matching(),
        "registries": {
            key: [
                {
                    "name": entry.listed_name,
                    "origin": str(entry.origin),
                    "target": describe_target(entry.target),
                }
                for entry in registry.entries()
            ]
            for key, registry in catalog.registries.items()
        },
        "plugins": [record._asdict() for record in plugins],
        "environment": {DISABLE: os.environ.get(DISABLE, "")},
    }


def versions(check: bool = False) -> dict[str, str]:
    """Versions of Python, gloria and the packages that it can use."""
    found = {
        "gloria": gloria.__version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
    }
    for distribution, module in PACKAGES.items():
        found[distribution] = _version(distribution, module, check)
    return found


def devices() -> dict[str, str]:
    """What torch can compute on."""
    try:
        import torch
    except Exception as cause:
        return {"none": f"torch is installed but broken: {describe(cause)}"}
    found = {"cpu": f"{platform.machine()}, {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        found[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
    for index in range(torch.xpu.device_count()):
        found[f"xpu:{index}"] = torch.xpu.get_device_name(index)
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found


def matching() -> dict[str, Any]:
    """Each matching backend's reasons not to run here, none if it can, and what "auto" takes.

    For the paper's problem, on the fastest device.
    """
    try:
        from gloria.matching.dispatch import PAPER_PROBLEM, choose_backend, explain_backends
        from gloria.training.devices import pick_device
    except Exception as cause:
        return {"backends": {"none": [describe(cause)]}, "auto": None}
    problem = PAPER_PROBLEM._replace(device=pick_device("auto").type)
    return {"backends": explain_backends(problem), "auto": choose_backend(problem)}


def render(facts: dict[str, Any]) -> str:
    """The report as text."""
    lines = _section("versions", facts["versions"].items())
    lines += _section("devices", facts["devices"].items())
    rows = (_backend_row(facts, name) for name in facts["backends"])
    lines += _section("matching backends", rows)
    for key, entries in facts["registries"].items():
        rows = ((entry["name"], f"{entry['origin']}, {entry['target']}") for entry in entries)
        lines += _section(key.replace("_", " "), rows)
    lines += _section("plugins", (_plugin_row(plugin) for plugin in facts["plugins"]))
    if disabled := facts["environment"][DISABLE]:
        lines.append(f"{DISABLE}={disabled}")
    return "\n".join(lines).rstrip()


def _section(title: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    rows = list(rows) or [("none", "")]
    width = max(len(name) for name, _ in rows)
    return [title, *(f"  {name:{width}}  {value}".rstrip() for name, value in rows), ""]


def _backend_row(facts: dict[str, Any], name: str) -> tuple[str, str]:
    taken = ", and auto takes it" if name == facts["auto"] else ""
    return name, " ".join(facts["backends"][name]) or f"can run{taken}"


def _plugin_row(plugin: dict[str, Any]) -> tuple[str, str]:
    package = f"{plugin['distribution']} {plugin['version']}".rstrip()
    if plugin["status"] == "loaded":
        brought = [name for names in plugin["registered"].values() for name in names]
        return plugin["name"], f"{package}, loaded: {', '.join(brought) or 'no names'}"
    return plugin["name"], f"{package}, {PluginRecord(**plugin).outcome}"


def _version(distribution: str, module: str, check: bool) -> str:
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
    try:
        if check:
            importlib.import_module(module)
        elif find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}")
    except Exception as cause:
        return f"{version}, installed but broken: {describe(cause)}"
    return version
