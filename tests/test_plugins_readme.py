"""The promises of plugins/README.md: its guide works to the letter, its packages are as it says."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
from importlib import import_module
from pathlib import Path

import pytest

import gloria

ROOT = Path(gloria.__file__).parents[1]
FOLDER = ROOT / "plugins"
README = (FOLDER / "README.md").read_text()
STEPS = re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)

OFFLINE = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # pip takes it for the value of build_isolation
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}


@pytest.fixture
def environment(tmp_path):
    """Sees the packages of this environment but no network, and its twine only notes its task."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    binaries = home / "bin"
    site = next(home.glob("lib/python*/site-packages"))
    shared = [path for path in sys.path if path.endswith("-packages")]
    (site / "shared.pth").write_text("\n".join([str(ROOT), *shared]))
    (site / "twine-6.0.dist-info").mkdir()
    (site / "twine-6.0.dist-info" / "METADATA").write_text("Name: twine\nVersion: 6.0\n")
    scripts = {
        "gloria": 'exec python -m gloria "$@"',
        "hatchling": 'exec python -m hatchling "$@"',
        "twine": f'echo "$@" > "{tmp_path}/uploaded"',
    }
    for name, line in scripts.items():
        (binaries / name).write_text(f"#!/bin/sh\n{line}\n")
        (binaries / name).chmod(0o755)
    path = os.pathsep.join([str(binaries), os.environ["PATH"]])
    return {**os.environ, **OFFLINE, "PATH": path, "GLORIA_DISABLE_PLUGINS": ""}


@pytest.mark.slow
def test_an_author_who_follows_it_publishes_a_working_plugin(tmp_path, environment):
    def run(script):
        done = subprocess.run(
            ["bash", "-euc", script],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    mine = tmp_path / "gloria-mine"
    said = " ".join(run("\n".join(STEPS)).split())
    assert "mine_triplet plugin 'mine' of gloria-mine 0.1, gloria_mine.losses:TripletLoss" in said
    assert "mine gloria-mine 0.1, loaded: mine_triplet" in said
    assert json.loads((mine / "runs" / "mine" / "history.json").read_text())[-1]["step"] == 5

    with tarfile.open(mine / "dist" / "gloria_mine-0.1.tar.gz") as source:  # no data, no runs
        names = {name.removeprefix("gloria_mine-0.1/") for name in source.getnames()}
    package = {f"gloria_mine/{name}.py" for name in ("__init__", "hooks", "losses")}
    assert names == {*package, "pyproject.toml", "PKG-INFO"}
    wheel = "dist/gloria_mine-0.1-py3-none-any.whl"
    uploaded = (tmp_path / "uploaded").read_text().split()
    assert set(uploaded) == {"upload", "dist/gloria_mine-0.1.tar.gz", wheel}
    run(f"pip uninstall --yes gloria-mine && pip install {mine / wheel}")
    use = (
        "import gloria, torch; "
        "x, y = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]); "
        "print(gloria.create_loss('mine_triplet')(x, y).item())"
    )
    # hinges of 0.2 - s_ii + s_ij: 0.2 four times
    assert float(run(f'python -c "{use}"')) == pytest.approx(0.2)


def test_the_guide_is_short():
    lines = [line for step in STEPS for line in step.splitlines() if line != "END"]
    assert len(lines) <= 25


def test_links_and_files_exist():
    links = [FOLDER / path for path in re.findall(r"\]\(([^)#:]+)\)", README)]
    files = [ROOT / path for path in re.findall(r"\b(?:gloria|plugins)/[\w.]+", README)]
    assert links
    assert files
    assert [path for path in links + files if not path.exists()] == []


def test_every_package_is_listed_and_complete():
    packages = [file.parent for file in FOLDER.glob("*/pyproject.toml")]
    assert packages
    for package in packages:
        assert f"]({package.name})" in README
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        assert project["name"] == package.name
        assert project["license"] == "Apache-2.0"
        assert project["entry-points"]["gloria.plugins"]
        for part in ("README.md", "LICENSE", "tests"):
            assert (package / part).exists()


def gloria_imports():
    """Each ``(file, module, name)`` that a file of a plugin takes from gloria."""
    for file in FOLDER.glob("*/*/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found = [(alias.name, None) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found = [(node.module, alias.name) for alias in node.names]
            else:
                continue
            yield from (
                (file.relative_to(FOLDER), module, name)
                for module, name in found
                if module.partition(".")[0] == "gloria"
            )


def test_the_packages_use_public_names_only():
    taken = list(gloria_imports())
    assert taken
    for file, module, name in taken:
        public = getattr(import_module(module), "__all__", None)
        hidden = [part for part in f"{module}.{name}".split(".") if part.startswith("_")]
        assert not hidden, f"{file} takes {module}.{name}"
        assert public is None or name is None or name in public, f"{file} takes {module}.{name}"
