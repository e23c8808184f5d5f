"""docs/zero-shot.md: its code runs, its file is one."""

import pytest
from pages import blocks, read, run

import gloria
from gloria.data import read_prompts
from gloria.data.phantom import PhantomDataset
from gloria.training.randomness import isolated
from gloria.training.small import small_model

# small vocabularies, of few reports, lack words of the prompts
pytestmark = pytest.mark.filterwarnings("ignore::gloria.errors.UnknownWordWarning")

PAGE = read("docs/zero-shot.md")


def test_the_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/demo").mkdir(parents=True)
    with isolated(0):
        model = small_model([item.report for item in PhantomDataset("train", count=60)])
    gloria.save_model(model, "runs/demo/model")
    names = run(PAGE)
    assert names["scores"].shape == names["probabilities"].shape == names["labels"].shape
    assert names["thresholds"].undefined == []
    assert "['pneumothorax', 'pneumothorax on the left'" in capsys.readouterr().out


def test_the_file_is_one(tmp_path):
    (tmp_path / "mine.yaml").write_text(*blocks(PAGE, "yaml"))
    prompts = read_prompts(tmp_path / "mine.yaml")["Pneumothorax"]
    assert len(prompts.prompts) == 1 + 3 * 2 * 2
    assert prompts.negative_prompts == ["no pneumothorax"]
