"""Features on disk: what is read back is what was encoded, and nothing is encoded twice."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gloria.data.folder import ImageFolder
from gloria.data.pairs import PhantomPairs
from gloria.data.phantom import PhantomDataset
from gloria.data.radiographs import Radiographs
from gloria.errors import DataError, DtypeError, OptionError
from gloria.evaluation import embeddings
from gloria.evaluation.embeddings import store_images
from gloria.evaluation.features import encode_images
from gloria.training.randomness import isolated
from gloria.training.small import small_model

SIZE = (32, 32)


@pytest.fixture(scope="module")
def model():
    with isolated(0):
        return small_model([item.report for item in PhantomDataset("test", count=30)])


@pytest.fixture
def films(tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(7):
        draw(folder / f"{number}.png", number)
    return folder


def draw(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (36, 30), np.uint8)
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(seed, 10**9 * seed))  # the clock of a disk may stand still for a test


def store(tmp_path, model, films, **options):
    data = ImageFolder(films, size=SIZE)
    options = {"fingerprint": "a", "shard_size": 3, **options}
    return store_images(tmp_path / "store", model, data, **options)


def encode(model, films, names):
    data = ImageFolder(films, size=SIZE)
    return encode_images(model, [data[data.ids.index(name)].image for name in names])


def assert_same(actual, expected):
    torch.testing.assert_close(actual.pooled, expected.pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(actual.regions, expected.regions, rtol=0, atol=1e-5)
    assert actual.grid == expected.grid


def test_what_comes_back_is_what_the_model_gives(tmp_path, model, films):
    images = store(tmp_path, model, films)
    assert images.ids == [f"{number}.png" for number in range(7)]
    assert images.paths == [films / name for name in images.ids]
    assert (images.encoded, images.broken) == (7, ())
    order = [5, 0, 6, 3, 3]
    assert_same(images.features(order), encode(model, films, [f"{n}.png" for n in order]))
    expected = encode(model, films, images.ids).pooled
    seen = []
    for indices, pooled in images.pooled():
        torch.testing.assert_close(pooled, expected[indices], rtol=0, atol=1e-5)
        assert len(indices) <= 3
        seen += indices
    assert sorted(seen) == list(range(7))


def test_only_new_and_changed_images_are_encoded_again(tmp_path, model, films):
    store(tmp_path, model, films)
    assert store(tmp_path, model, films).encoded == 0
    draw(films / "2.png", 100)
    draw(films / "9.png", 9)
    (films / "4.png").unlink()
    done = []
    images = store(tmp_path, model, films, progress=done.append)
    assert images.encoded == 2
    assert done[0] == 5
    assert sum(done) == 7
    assert images.ids == [f"{number}.png" for number in (0, 1, 2, 3, 5, 6, 9)]
    assert_same(images.features(range(7)), encode(model, films, images.ids))


def test_a_time_of_modification_is_a_change(tmp_path, model, films):
    store(tmp_path, model, films)
    os.utime(films / "2.png", ns=(1, 1))
    assert store(tmp_path, model, films).encoded == 1


def test_folders_with_the_same_names_are_kept_apart(tmp_path, model):
    """Even when sizes and times agree, as those of unpacked archives may."""
    for folder, seed in (("one", 1), ("other", 2)):
        (tmp_path / folder).mkdir()
        draw(tmp_path / folder / "film.bmp", seed)
        os.utime(tmp_path / folder / "film.bmp", ns=(0, 0))
    assert (tmp_path / "one/film.bmp").stat().st_size == (
        tmp_path / "other/film.bmp"
    ).stat().st_size
    for folder, encoded in (("one", 1), ("other", 1), ("one", 0), ("other", 0)):
        images = store(tmp_path, model, tmp_path / folder)
        assert images.encoded == encoded
        assert_same(images.features([0]), encode(model, tmp_path / folder, ["film.bmp"]))


def test_a_stopped_encoding_goes_on_where_it_stood(tmp_path, model, films):
    done = []

    def stop_in_the_third_shard(count):
        done.append(count)
        if sum(done) > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, model, films, shard_size=2, progress=stop_in_the_third_shard)
    assert not list((tmp_path / "store").glob(".*"))
    images = store(tmp_path, model, films)
    assert images.encoded == 3
    assert_same(images.features(range(7)), encode(model, films, images.ids))


@pytest.mark.parametrize(("seconds", "expected"), [(30, [0, 7]), (0, [*range(8)])])
def test_the_index_of_all_images_is_written_now_and_then(
    tmp_path, model, films, monkeypatch, seconds, expected
):
    """Not after each shard, which would be most of the work of a hundred thousand images."""
    written = []

    def count(folder, settings, grid, rows):
        written.append(len(rows))
        write_index(folder, settings, grid, rows)

    write_index = embeddings._write_index
    monkeypatch.setattr(embeddings, "_write_index", count)
    monkeypatch.setattr(embeddings, "SECONDS", seconds)
    store(tmp_path, model, films, shard_size=1)
    assert written == expected
    assert store(tmp_path, model, films).encoded == 0


def test_a_film_of_other_bits_costs_no_other_film(tmp_path, model, films):
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(films / "3.png")
    images = store(tmp_path, model, films)
    assert images.ids == [f"{number}.png" for number in (0, 1, 2, 4, 5, 6)]
    (fault,) = images.broken
    assert "3.png has 16 bits a pixel and uses 12" in fault


def test_bits_that_fit_no_film_are_told_at_once(tmp_path, model, films):
    for number in range(7):
        Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(films / f"{number}.png")
    done = []
    with pytest.raises(DataError, match=r"the first 3 images can be read; .*0\.png has 16 bits"):
        store(tmp_path, model, films, progress=done.append)
    assert sum(done) == 3


def test_other_processes_load_the_same(tmp_path, model, films):
    (films / "3.png").write_bytes(b"")
    expected = store(tmp_path, model, films)
    data, done = ImageFolder(films, size=SIZE), []
    options = {"fingerprint": "a", "shard_size": 3, "workers": 2, "progress": done.append}
    images = store_images(tmp_path / "other", model, data, **options)
    assert (images.ids, images.broken) == (expected.ids, expected.broken)
    assert sum(done) == 7
    assert_same(images.features(range(6)), expected.features(range(6)))
    assert store_images(tmp_path / "other", model, data, **options).encoded == 0
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(films / "3.png")
    (fault,) = store_images(tmp_path / "other", model, data, **options).broken
    assert "3.png has 16 bits a pixel and uses 12" in fault


def test_broken_images_are_named_and_tried_again(tmp_path, model, films):
    whole = (films / "3.png").read_bytes()
    (films / "3.png").write_bytes(whole[:60])
    (films / "5.png").write_bytes(b"")
    images = store(tmp_path, model, films)
    assert images.ids == [f"{number}.png" for number in (0, 1, 2, 4, 6)]
    assert images.encoded == 5
    assert [fault.split(" can't be read")[0] for fault in images.broken] == [
        f"image {films / name}" for name in ("3.png", "5.png")
    ]
    (films / "3.png").write_bytes(whole)
    images = store(tmp_path, model, films)
    assert images.encoded == 1
    assert len(images.broken) == 1
    for film in films.iterdir():
        film.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the first 3 images can be read; first: .*0\.png"):
        store(tmp_path, model, films)


def test_a_film_of_several_rows_is_encoded_once(tmp_path, model, films):
    once = ImageFolder(films, size=SIZE).records
    data = Radiographs([*once, *once[2:4]], size=SIZE)
    done = []
    images = store_images(tmp_path / "store", model, data, fingerprint="a", progress=done.append)
    assert images.encoded == 7
    assert sum(done) == len(images) == 9
    assert_same(images.features([2, 3]), images.features([7, 8]))


def test_images_are_chosen_by_any_integers(tmp_path, model, films):
    images = store(tmp_path, model, films)
    expected = images.features([5, 0, 5])
    for indices in (torch.tensor([5, 0, 5]), np.array([5, 0, 5]), (-2, 0, 5)):
        assert_same(images.features(indices), expected)
    with pytest.raises(DataError, match="indices must hold at least one"):
        images.features([])


@pytest.mark.parametrize("change", ["model", "size", "channels", "bits", "window"])
def test_features_of_another_model_or_preparation_are_refused(tmp_path, model, films, change):
    store(tmp_path, model, films)
    before = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    options = {
        "size": {"size": (30, 32)},
        "channels": {"channels": 3},
        "bits": {"bits": 12},
        "window": {"window": (100.0, 50.0)},
    }.get(change, {})
    data = ImageFolder(films, **{"size": SIZE, **options})
    fingerprint = "b" if change == "model" else "a"
    named = {"size": "image_size was .32, 32., is .30, 32.", "model": "model was 'a', is 'b'"}
    with pytest.raises(DataError, match=f"another model or .*{named.get(change, change + ' was')}"):
        store_images(tmp_path / "store", model, data, fingerprint=fingerprint)
    assert {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()} == before


def test_a_folder_of_something_else_is_left_alone(tmp_path, model, films):
    with pytest.raises(DataError, match="films must be empty, or hold features"):
        store_images(films, model, ImageFolder(films, size=SIZE), fingerprint="a")
    assert len(list(films.iterdir())) == 7


def damage_index(folder):
    (folder / "index.json").write_text('{"format": 2, "settings"')


def truncate_shard(folder):
    for shard in folder.glob("*.safetensors"):
        os.truncate(shard, 100)


def remove_shard(folder):
    for shard in folder.glob("*.safetensors"):
        shard.unlink()


def misnumber(folder):
    index = json.loads((folder / "index.json").read_text())
    for row in index["images"].values():
        row[3] += 50
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("damage", [damage_index, truncate_shard, remove_shard, misnumber])
def test_damage_is_an_error_that_names_the_folder(tmp_path, model, films, damage):
    store(tmp_path, model, films)
    damage(tmp_path / "store")
    with pytest.raises(DataError, match=f"{tmp_path / 'store'} is damaged .* Delete it"):
        store(tmp_path, model, films).features([0, 1])
    with pytest.raises(DataError, match="is damaged"):
        list(store(tmp_path, model, films).pooled())


def test_features_from_before_exif_was_read_are_refused(tmp_path, model, films):
    store(tmp_path, model, films)
    index = json.loads((tmp_path / "store" / "index.json").read_text())
    assert index["format"] == 2
    (tmp_path / "store" / "index.json").write_text(json.dumps({**index, "format": 1}))
    with pytest.raises(DataError, match=r"format 1, in which .* otherwise; .* writes format 2"):
        store(tmp_path, model, films)


def test_region_masks_are_kept(tmp_path, model, films, monkeypatch):
    encode_image = model.encode_image

    def masked(images):
        features = encode_image(images)
        mask = features.regions[..., 0] > features.regions[..., 0].median()
        mask[:, 0] = True
        holes = features.regions.masked_fill(~mask[..., None], float("nan"))
        return features._replace(regions=holes, region_mask=mask)

    monkeypatch.setattr(model, "encode_image", masked)
    images = store(tmp_path, model, films, batch_size=7, shard_size=7)
    expected = encode(model, films, images.ids)
    actual = images.features([4, 1])
    assert torch.equal(actual.region_mask, expected.region_mask[[4, 1]])
    assert torch.equal(actual.regions.isnan(), expected.regions[[4, 1]].isnan())


def test_features_that_are_not_finite_are_an_error(tmp_path, films):
    with isolated(0):
        model = small_model([item.report for item in PhantomDataset("test", count=30)])
    with torch.no_grad():
        next(model.image_head.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match=r"features of .*0\.png are not finite"):
        store(tmp_path, model, films)
    assert not list((tmp_path / "store").glob("*.safetensors"))


def test_a_full_disk_is_an_error_and_leaves_nothing_half_written(
    tmp_path, model, films, monkeypatch
):
    def fill(path, content):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(OSError, match=r"No space left on device: .*store.*safetensors"):
        store(tmp_path, model, films)
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["index.json"]
    monkeypatch.undo()
    assert store(tmp_path, model, films).encoded == 7


def test_whoever_may_read_the_index_may_read_the_features(tmp_path, model, films):
    store(tmp_path, model, films)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "store").iterdir()}
    assert len(modes) == 1


def test_what_is_no_data_set_of_files_is_told(tmp_path, model, films):
    items = PhantomDataset("test", count=2)
    part = torch.utils.data.Subset(ImageFolder(films, size=SIZE), [0])
    for data in (PhantomPairs(items), part, [films / "0.png"]):
        message = f"data must be Radiographs, .* got {type(data).__name__}"
        with pytest.raises(DtypeError, match=message):
            store_images(tmp_path / "store", model, data, fingerprint="a")


def test_sizes_below_one_are_errors(tmp_path, model, films):
    with pytest.raises(OptionError, match="shard_size must be at least 1; got 0"):
        store(tmp_path, model, films, shard_size=0)
    with pytest.raises(OptionError, match="batch_size must be at least 1; got 0"):
        store(tmp_path, model, films, batch_size=0)
    with pytest.raises(OptionError, match="workers must be at least 0; got -1"):
        store(tmp_path, model, films, workers=-1)
