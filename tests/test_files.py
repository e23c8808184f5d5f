"""What is written is there whole, or not at all, whenever a process is killed."""

import os
import stat

import pytest

from gloria.files import remove_drafts, write_file, write_folder


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(draft):
        draft.write_bytes(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(path, fail)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"
    write_file(path, lambda draft: draft.write_bytes(b"new"))
    assert path.read_bytes() == b"new"
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*/none/file'$"):
        write_file(tmp_path / "none" / "file", lambda draft: draft.write_bytes(b"new"))


def test_what_is_put_in_place_is_on_the_disk_by_then(tmp_path, monkeypatch):
    """A loss of power can't be tried here: every file and folder is flushed, in this order."""
    done, opened, open_file = [], {}, os.open

    def open_as(path, *how):
        handle = open_file(path, *how)
        opened[handle] = str(path)
        return handle

    def replace(source, target):
        done.append(f"replace {target}")
        os.rename(source, target)

    monkeypatch.setattr("gloria.files.os.open", open_as)
    monkeypatch.setattr("gloria.files.os.fsync", lambda handle: done.append(opened[handle]))
    monkeypatch.setattr("gloria.files.os.replace", replace)

    def write(folder):
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text("new")

    write_folder(tmp_path / "best", write)
    *flushed, last, folder = done
    hidden = [path.replace(str(tmp_path), "").partition("/model")[1:] for path in flushed]
    assert sorted(hidden) == [("", ""), ("/model", ""), ("/model", "/weights")]
    assert (last, folder) == (f"replace {tmp_path / 'best'}", str(tmp_path))
    done.clear()
    write_file(tmp_path / "file", lambda draft: draft.write_text("new"))
    draft, *rest = done
    assert draft.startswith(f"{tmp_path}/.file.")
    assert rest == [f"replace {tmp_path / 'file'}", str(tmp_path)]


@pytest.mark.parametrize("refused", ["open", "fsync"])
def test_a_folder_that_can_not_be_flushed_is_written_into(tmp_path, monkeypatch, refused):
    usual, folders = getattr(os, refused), []

    def refuse(target, *more):
        if stat.S_ISDIR(os.stat(target).st_mode):
            folders.append(target)
            raise PermissionError(13, "Permission denied")
        return usual(target, *more)

    monkeypatch.setattr(f"gloria.files.os.{refused}", refuse)
    write_file(tmp_path / "file", lambda draft: draft.write_text("new"))
    write_folder(tmp_path / "model", lambda folder: (folder / "weights").write_text("new"))
    assert folders
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "model" / "weights").read_text() == "new"


def test_a_kill_in_the_instant_of_replacing_a_folder_costs_nothing(tmp_path, monkeypatch):
    write_folder(tmp_path / "best", lambda folder: (folder / "weights").write_text("old"))

    class KilledError(BaseException):
        pass

    def replace(source, target):
        if str(source).endswith(".new"):
            raise KilledError  # the old one is aside already
        return os.rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr("gloria.files.os.replace", replace)
        patched.setattr("gloria.files.shutil.rmtree", lambda *args, **options: None)
        with pytest.raises(KilledError):
            write_folder(tmp_path / "best", lambda folder: (folder / "weights").write_text("new"))
    assert not (tmp_path / "best").exists()
    remove_drafts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (tmp_path / "best" / "weights").read_text() == "old"


def test_drafts_of_a_kill_are_removed_and_nothing_else(tmp_path):
    kept = [".best", ".notes.txt", "model", ".model.12345678.txt", ".git.1234567.new"]
    for name in (*kept, ".best.0123abcd.new", ".step-000002.0123abcd.old"):
        (tmp_path / name / "inner").mkdir(parents=True)
    (tmp_path / ".history.json.89abcdef.new").write_text("{")
    (tmp_path / "step-000002").mkdir()
    kept.append("step-000002")
    remove_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    remove_drafts(tmp_path / "none")
