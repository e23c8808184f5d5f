"""docs/classification.md: its code runs, on phantoms and on files in CheXpert's format."""

import csv
from pathlib import Path

import numpy as np
import torch
from pages import read, run
from PIL import Image

from gloria.data.chexpert import CLASSES, COMPETITION_CLASSES
from gloria.data.phantom import FINDINGS, PhantomDataset
from gloria.evaluation import multilabel_auroc


def test_the_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        path = f"CheXpert-v1.0-small/train/patient{number:05}/study1/view1_frontal.jpg"
        Path(path).parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (24, 20), np.uint8)).save(path)
        shown = {COMPETITION_CLASSES[number % 5]: "1.0", COMPETITION_CLASSES[number % 3]: "-1.0"}
        rows.append([path, *(shown.get(name, "") for name in CLASSES)])
    with Path("CheXpert-v1.0-small/train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Path", *CLASSES], *rows])

    names = run(read("docs/classification.md"))
    drawn = PhantomDataset("test", count=100, size=32)
    labels = torch.stack([torch.from_numpy(item.labels) for item in drawn])
    by_hand = multilabel_auroc(names["logits"], labels)["mean"]
    assert abs(by_hand - names["figures"]["mean"]) < 1e-3
    assert names["result"]["classes"] == list(FINDINGS)
    assert list(names["result"]["rows"]["random"]) == ["10%", "100%"]
    assert (names["data"].labels == -1).any()
    assert [len(names[split]) for split in ("train", "validation", "test")] == [48, 6, 6]
    assert "10% {'mean': 0." in capsys.readouterr().out
