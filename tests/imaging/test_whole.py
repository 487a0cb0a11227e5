"""Files that are there whole or not at all, and what a killed process leaves of them."""

import pytest

from imaging import whole as module
from imaging.whole import sweep, whole, write_whole


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    write_whole(tmp_path / "a.txt", "old")

    def interrupted():
        with whole(tmp_path / "a.txt") as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
    write_whole(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "picture.part").write_text("somebody's own")
    with monkeypatch.context() as patch, whole(tmp_path / "b.txt") as mine:
        mine.write_text("in the making")
        patch.setattr(module.os, "getpid", lambda: 999_999)
        other = whole(tmp_path / "a.txt")
        other.__enter__().write_text("half")
        assert len(list(tmp_path.iterdir())) == 3
        sweep(tmp_path, 999_999)
        assert {path.name for path in tmp_path.iterdir()} == {"picture.part", mine.name}
    assert (tmp_path / "b.txt").read_text() == "in the making"
