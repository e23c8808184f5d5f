"""docs/retrieval.md: its code and its commands run on a small model and small files."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from pages import ROOT, blocks, read, run
from PIL import Image

import gloria
from gloria.cli import main
from gloria.data.chexpert import CLASSES, COMPETITION_CLASSES, EIGHT_CLASSES
from gloria.data.folder import ImageFolder
from gloria.data.phantom import PhantomDataset
from gloria.training.randomness import isolated
from gloria.training.small import small_model

PAGE = read("docs/retrieval.md")
SEARCH, ATTENTION, BENCHMARK = blocks(PAGE, "bash")

pytestmark = [
    pytest.mark.filterwarnings("ignore::gloria.errors.TruncatedTextWarning"),
    # the vocabulary of six reports lacks words of the queries
    pytest.mark.filterwarnings("ignore::gloria.errors.UnknownWordWarning"),
]


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """What the page has on disk."""
    monkeypatch.chdir(tmp_path)
    items = list(PhantomDataset("test", count=6))
    with isolated(0):
        model = small_model([item.report for item in items])
    model.trained_image_size = (64, 64)  # as train says
    gloria.save_model(model, "runs/mine/model")
    Path("films").mkdir()
    for number, item in enumerate(items):
        Image.fromarray(item.image).save(f"films/{number}.png")
    rng = np.random.default_rng(0)
    labels, reports = [",".join(["Path", *CLASSES])], ["path_to_image,report,split"]
    wanted = [name for name in dict.fromkeys(COMPETITION_CLASSES + EIGHT_CLASSES) for _ in "123"]
    for number, name in enumerate(wanted):
        path = f"train/patient{number:05}/study1/view1_frontal.jpg"
        labels.append(",".join([path, *("1.0" if each == name else "" for each in CLASSES)]))
        reports.append(f"{path},{name}.,train")
        for folder in ("CheXpert-v1.0-small", "chexpert_plus"):
            (Path(folder) / path).parent.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(Path(folder) / path)
    Path("CheXpert-v1.0-small/train.csv").write_text("\n".join(labels))
    Path("chexpert_plus/df_chexpert_plus_240401.csv").write_text("\n".join(reports))
    return tmp_path


def test_the_code_and_the_commands_run(disk, capsys):
    data = ImageFolder("films", size=(64, 64))
    data.records = [record._replace(report="Edema.") for record in data.records]
    names = run(PAGE, data=data)
    assert names["fused"].shape == names["published"].shape == (6, 6)
    assert len(names["test"]) == 10
    assert (len(names["queries"]), len(names["candidates"])) == (8, 16)
    assert capsys.readouterr().out.count("films/") == 3
    for command in SEARCH.splitlines():
        assert main([*shlex.split(command)[1:], "--quiet"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1 + 6
    assert (disk / "cache" / "index.json").is_file()
    (disk / "attention.png").unlink()  # which the code drew
    assert main(shlex.split(ATTENTION.replace("\\\n", ""))[1:]) == 0
    assert (disk / "attention.png").is_file()


def test_the_benchmark_is_where_the_page_says():
    (script,) = re.findall(r"benchmarks/\w+\.py", BENCHMARK)
    assert (ROOT / script).is_file()
