"""The README's promises: its code runs, its commands are the ones CI runs, its paths exist."""

import re

import pytest
from pages import ROOT, blocks, read

import gloria
from gloria.cli import COMMANDS

README = read("README.md")
BLOCKS = blocks(README)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_the_drop_in_example_has_eight_lines():
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) == 8


def test_the_test_command_is_the_one_that_ci_runs():
    command = re.search(r"^python3 -m venv .*pytest -n 2$", README, re.MULTILINE).group()
    script = (ROOT / ".ci" / "run").read_text()
    assert re.search(r'pip install (-e "\.\[\w+\]")', command).group(1) in script
    assert script.rstrip().endswith("pytest -n 2")


def test_commands_exist():
    commands = set(re.findall(r"(?:^|[ /`])gloria ([a-z-]+)\b", README))
    assert {"demo", "train", "info", "import-published"} <= commands
    assert commands <= set(COMMANDS)


def test_links_and_rooms_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    rooms = re.findall(r"`(gloria/[\w/.]+)`", README)
    assert links
    assert rooms
    missing = [path for path in links + rooms if not (ROOT / path).exists()]
    assert not missing


def test_every_public_name_is_there():
    assert all(getattr(gloria, name) for name in gloria.__all__)
    assert set(gloria._HOMES) | {"__version__"} == set(gloria.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = gloria.nonsense
