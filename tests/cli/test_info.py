"""What a bug report needs."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch

import gloria
from gloria import cli
from gloria.catalog import Catalog
from gloria.cli import info
from gloria.errors import PluginWarning
from gloria.matching.dispatch import BACKENDS, explain_backends


@pytest.fixture
def plugins(install):
    """A good plugin, and a bad one."""
    install(
        "good-plugin",
        {
            "good_plugin.py": """
                def gloria_register_losses(register): register("good_loss", "nowhere:Loss")
                def gloria_register_image_encoders(register): register("good:", "nowhere:zoo")
            """
        },
        {"good": "good_plugin"},
        version="3.1",
    )
    install("bad-plugin", {"bad_plugin.py": "raise OSError('no licence')"}, {"bad": "bad_plugin"})
    return install.site


def test_versions_tell_what_is_installed():
    found = info.versions()
    assert found["gloria"] == gloria.__version__
    assert found["python"].startswith(platform.python_version())
    for distribution in ("torch", "einops", "numpy"):
        assert found[distribution] == metadata.version(distribution)


def test_versions_tell_missing_and_broken_packages(install, monkeypatch):
    install("gone", {}, {}, version="4")  # its files are gone, its metadata stayed
    install("native", {"native_part.py": "raise OSError('libfoo.so')"}, {}, version="5")
    packages = {"no-such-thing": "no_such_thing", "gone": "gone_part", "native": "native_part"}
    monkeypatch.setattr(info, "PACKAGES", packages)
    found = info.versions()
    assert found["no-such-thing"] == "not installed"
    assert found["gone"].startswith("4, installed but broken: ModuleNotFoundError")
    assert found["native"] == "5"
    assert info.versions(check=True)["native"] == "5, installed but broken: OSError: libfoo.so"


def test_every_listed_package_is_one_we_declare():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {re.split(r"[\[<>=]", line)[0] for group in groups for line in group}
    assert set(info.PACKAGES) <= declared


def test_devices_tell_what_torch_sees():
    found = info.devices()
    assert f"{torch.get_num_threads()} threads" in found["cpu"]
    assert len([name for name in found if name.startswith("cuda")]) == torch.cuda.device_count()


def test_backends_are_those_of_the_dispatch():
    assert info.matching()["backends"] == explain_backends()
    shown = info.render({**info.collect(Catalog()), "backends": {"fast": ["No GPU.", "No luck."]}})
    assert "  fast  No GPU. No luck." in shown.splitlines()


@pytest.mark.parametrize("taken", ["triton", "chunked"])
def test_what_auto_takes_is_shown(monkeypatch, taken):
    why = {"triton": [] if taken == "triton" else ["No GPU."], "chunked": [], "einops": []}
    for name, reasons in why.items():
        monkeypatch.setattr(BACKENDS[name], "reasons_not_supported", lambda _, said=reasons: said)
    monkeypatch.setattr("gloria.training.devices.pick_device", lambda _: torch.device("cuda"))
    facts = info.collect(Catalog())
    assert facts["auto"] == taken
    (line,) = (line for line in info.render(facts).splitlines() if "auto takes it" in line)
    assert " ".join(line.split()) == f"{taken} can run, and auto takes it"


def test_names_origins_and_plugins_are_shown(plugins):
    facts = info.collect(Catalog())
    lines = [" ".join(line.split()) for line in info.render(facts).splitlines()]
    assert "good_loss plugin 'good' of good-plugin 3.1, nowhere:Loss" in lines
    assert "timm:* built-in, gloria.encoders.timm_image:TimmImageEncoder" in lines
    assert "good good-plugin 3.1, loaded: good:*, good_loss" in lines
    bad = next(line for line in lines if line.startswith("bad "))
    assert bad.startswith("bad bad-plugin 1.0, skipped: importing bad_plugin (")
    assert bad.endswith("bad_plugin.py:1) failed: OSError: no licence")


def test_disabled_plugins_are_shown(plugins, monkeypatch):
    monkeypatch.setenv("GLORIA_DISABLE_PLUGINS", "all")
    facts = info.collect(Catalog())
    assert {plugin["status"] for plugin in facts["plugins"]} == {"disabled"}
    assert "GLORIA_DISABLE_PLUGINS=all" in info.render(facts)


def test_a_misspelt_name_of_a_disabled_plugin_is_told(plugins, monkeypatch):
    monkeypatch.setenv("GLORIA_DISABLE_PLUGINS", "baad")
    with pytest.warns(PluginWarning, match="names 'baad': no such plugin") as caught:
        info.collect(Catalog())
    assert len(caught) == 1  # the faulty one is in the report


def test_json_is_the_same_report(capsys):
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts) == {
        "versions",
        "devices",
        "backends",
        "auto",
        "registries",
        "plugins",
        "environment",
    }
    names = [entry["name"] for entry in facts["registries"]["losses"]]
    assert "local_contrastive" in names
    assert facts["backends"] == explain_backends()


def test_a_plugin_that_prints_does_not_print_into_the_json(install, capsys, monkeypatch):
    install("loud", {"loud.py": "print('welcome to loud')"}, {"loud": "loud"})
    monkeypatch.setattr(info, "default_catalog", Catalog)
    assert cli.main(["info", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [each["name"] for each in json.loads(out)["plugins"] if each["name"] == "loud"]
    assert "welcome to loud" in err


def test_info_of_a_fresh_process_survives_a_faulty_plugin(plugins):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-m", "gloria", "info"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(plugins), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "OSError: no licence" in done.stdout
    assert "good_loss" in done.stdout
