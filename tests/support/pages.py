"""The code in pages of the documentation."""

import re
from pathlib import Path

import gloria

ROOT = Path(gloria.__file__).parents[1]


def read(page):
    """The text of a page, as ``read("docs/losses.md")``."""
    return (ROOT / page).read_text()


def blocks(text, language="python"):
    """The blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run(text, **names):
    """The names that there are once all Python in a text has run."""
    code = blocks(text)
    assert code, "there is no Python in it"
    names = {"__name__": "docs", **names}
    exec(compile("\n".join(code), "docs", "exec"), names)
    return names
