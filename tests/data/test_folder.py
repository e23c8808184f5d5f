"""Images of a folder: found by name or content, in one order, hidden files left out."""

import shutil

import numpy as np
import pytest

from gloria.data.folder import ImageFolder
from gloria.errors import DataError


@pytest.fixture
def films(write_image, write_dicom, tmp_path):
    folder = tmp_path / "films"
    for name in ("b.png", "a/2.JPG", "a/1.jpeg", ".hidden.png", ".cache/c.png"):
        write_image(folder / name)
    write_dicom(tmp_path / "film.dcm", np.full((8, 8), 100))
    shutil.move(tmp_path / "film.dcm", folder / "a" / "1.2.840.99")  # as PACS name them
    (folder / "notes.txt").write_text("no image")
    (folder / "empty").write_text("")
    return folder


def test_every_image_is_found_and_nothing_else(films):
    data = ImageFolder(films, size=(6, 6))
    assert data.ids == ["a/1.2.840.99", "a/1.jpeg", "a/2.JPG", "b.png"]
    assert [record.path for record in data.records] == [films / name for name in data.ids]
    assert all(data[index].image.shape == (1, 6, 6) for index in range(4))


def test_links_to_folders_are_followed_into_each_once(films, tmp_path, write_image):
    write_image(tmp_path / "elsewhere" / "d.png")
    (films / "c").symlink_to(tmp_path / "elsewhere")
    (films / "a" / "around").symlink_to(films)
    (films / "A").symlink_to(films / "a")
    (films / "a" / "inside").symlink_to(films / "z")
    write_image(films / "z" / "e.png")  # by its own name, whatever leads there
    ids = ["a/1.2.840.99", "a/1.jpeg", "a/2.JPG", "b.png", "c/d.png", "z/e.png"]
    assert ImageFolder(films, size=(6, 6)).ids == ids


def test_a_broken_image_is_named_once(films):
    (films / "b.png").write_bytes(b"no image")
    data = ImageFolder(films, size=(6, 6))
    with pytest.raises(DataError) as broken:
        data[3]
    assert str(broken.value) == (
        f"image {films / 'b.png'} can't be read: Pillow knows no such image."
    )


def test_no_folder_and_no_image_are_errors(tmp_path):
    with pytest.raises(DataError, match="missing is no folder"):
        ImageFolder(tmp_path / "missing", size=(6, 6))
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="holds no image"):
        ImageFolder(tmp_path, size=(6, 6))
