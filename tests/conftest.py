"""Fixtures shared by the tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import pytest

Install = Callable[..., None]


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
