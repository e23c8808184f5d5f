"""What importing gloria brings in, each asked in a fresh process."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

import gloria

HEAVY = {
    "PIL",
    "matplotlib",
    "open_clip",
    "pandas",
    "pydicom",
    "scipy",
    "segmentation_models_pytorch",
    "sklearn",
    "timm",
    "torchmetrics",
    "torchvision",
    "tqdm",
    "transformers",
    "triton",
    "yaml",
}


@functools.cache
def modules_after(statement):
    """Names of the modules that a new interpreter has loaded after the statement."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return frozenset(json.loads(done.stdout))


def packages_after(statement):
    return {name.partition(".")[0] for name in modules_after(statement)}


THE_PACKAGE = "import gloria"
A_LOSS = "from gloria.losses import LocalContrastiveLoss"
ROOMS = ("losses", "distributed", "data", "encoders")
BY_NAME = "; ".join([THE_PACKAGE, *(f"gloria.{room}" for room in ROOMS)])


@pytest.mark.parametrize("statement", [A_LOSS, BY_NAME])
def test_torch_and_einops_are_all_it_takes(statement):
    """Beyond what those two bring in by themselves, which is none of our doing."""
    ours = packages_after(statement) - packages_after("import torch, einops")
    assert "gloria" in ours
    assert ours & HEAVY == set()


def test_rooms_are_there_after_importing_the_package():
    assert {f"gloria.{room}" for room in ROOMS} <= modules_after(BY_NAME)


def test_the_rooms_are_those_of_the_folder():
    private = {"checks", "cli", "files", "hookspecs", "mini_batches", "signatures", "wrapping"}
    folder = Path(gloria.__file__).parent
    found = {path.stem for path in folder.iterdir() if path.suffix in ("", ".py")}
    rooms = {name for name in found if not name.startswith("_")} - private
    assert rooms == set(gloria._ROOMS) <= set(dir(gloria))
    assert all(getattr(gloria, room).__name__ == f"gloria.{room}" for room in rooms)
    assert not hasattr(gloria, "room")


def test_importing_the_package_imports_no_room():
    assert {name for name in modules_after(THE_PACKAGE) if name.startswith("gloria.")} == set()


def test_the_losses_know_no_registry_no_plugin_and_no_data():
    ours = {name for name in modules_after(A_LOSS) if name.startswith("gloria.")}
    assert {"gloria.losses", "gloria.functional", "gloria.matching"} <= ours
    rooms = {name.split(".")[1] for name in ours}
    assert rooms <= {
        "aggregators",
        "checks",
        "contrastive",
        "errors",
        "functional",
        "losses",
        "matching",
        "signatures",
        "types",
        "wrapping",
    }
