"""Install the plugins of this folder with pip, see that gloria finds them, test and uninstall them.

    python plugins/check.py                          all of them, as CI does
    python plugins/check.py gloria-plugin-template   some

Run it in an environment with ``gloria-torch[test]`` and none of them. All are installed together;
they must be found, replace no package that was there, pass their tests, and leave nothing in gloria
when they are uninstalled. What pip installed for them stays, as it does after any uninstall.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def main(chosen: list[str]) -> None:
    """Check the plugins of these folders' names; none = all."""
    every = sorted(file.parent for file in FOLDER.glob("*/pyproject.toml"))
    folders = [FOLDER / name for name in chosen] or every
    packages, before = installed(), found()
    python("-m", "pip", "install", "--quiet", *map(str, folders))
    try:
        now = installed()
        replaced = {name for name, version in packages.items() if now.get(name) != version}
        require(not replaced, f"pip replaced {', '.join(sorted(replaced))}")
        check_found(folders)
        for folder in folders:
            print(f"--- {folder.name}", flush=True)
            python("-m", "pytest", str(folder / "tests"))
    finally:
        names = [folder.name for folder in folders]
        python("-m", "pip", "uninstall", "--quiet", "--yes", *names)
    require(found() == before, "uninstalled, the plugins left something in gloria")


def check_found(folders: list[Path]) -> None:
    """Require that gloria has loaded at least one plugin of each package, and skipped none."""
    plugins = found()["plugins"]
    for folder in folders:
        brought = [plugin for plugin in plugins if plugin["distribution"] == folder.name]
        require(bool(brought), f"gloria finds no plugin of {folder.name}")
        for plugin in brought:
            why = f"{plugin['name']} of {folder.name} is {plugin['status']}: {plugin['cause']}"
            require(plugin["status"] == "loaded", why)


def found() -> dict[str, Any]:
    """Names and plugins, as ``gloria info`` tells them in a fresh process."""
    facts = json.loads(python("-m", "gloria", "info", "--json", capture=True))
    return {key: facts[key] for key in ("registries", "plugins")}


def installed() -> dict[str, str]:
    """The version of every installed package."""
    packages = json.loads(python("-m", "pip", "list", "--format", "json", capture=True))
    return {package["name"]: package["version"] for package in packages}


def python(*arguments: str, capture: bool = False) -> str:
    """Run this interpreter; end with its exit code if that is not 0."""
    output = subprocess.PIPE if capture else None
    done = subprocess.run([sys.executable, *arguments], stdout=output, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def require(kept: bool, complaint: str) -> None:
    """End with a message where a promise is broken."""
    if not kept:
        sys.exit(f"plugins/check: {complaint}")


if __name__ == "__main__":
    main(sys.argv[1:])
