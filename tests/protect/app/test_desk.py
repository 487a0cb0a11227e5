"""A visitor's desk: names of strangers' files, archives, and nothing left."""

import os
import threading
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protect.app.desk import Desk, safe_stem, unique


@given(st.text(max_size=300))
def test_any_name_becomes_one_that_is_safe_everywhere(name):
    stem = safe_stem(name)

    assert stem == stem.strip(" .")
    assert 0 < len(stem.encode()) <= 120
    assert not set(stem) & set('/\\:*?"<>|\r\n\0\u202e')
    assert stem.isprintable()


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("my drawing (2).png", "my drawing (2)"),
        ("Грозен портрет.jpg", "Грозен портрет"),
        ("صورة.png", "صورة"),
        ("🎨 sketch.png", "🎨 sketch"),
        ("../../etc/passwd", "passwd"),
        ("C:\\users\\me\\cat.png", "cat"),
        ('x"\r\nSet-Cookie: a=b.png', "x___Set-Cookie_ a_b"),
        ("...", "picture"),
        ("gnp.\u202etxt.png", "gnp._txt"),
    ],
)
def test_names_of_every_script_stay_and_tricks_do_not(name, stem):
    assert safe_stem(name) == stem


def test_two_uploads_of_one_name_get_two_results(tmp_path):
    plan = Desk(tmp_path).plan(["a/cat.png", "b/CAT.jpg", "c/cat.webp"], label="protected")

    names = [job.output.name for job in plan.jobs]
    assert names == ["cat.protected.png", "CAT (2).protected.png", "cat (3).protected.png"]


def test_a_number_that_is_taken_is_not_given_again():
    taken: set[str] = set()

    assert [unique(stem, taken) for stem in ("a (2)", "a", "a")] == ["a (2)", "a", "a (3)"]


def test_an_archive_holds_the_very_bytes(tmp_path):
    desk, files = Desk(tmp_path), [tmp_path / "один.png", tmp_path / "b.png"]
    for file in files:
        file.write_bytes(os.urandom(1000))

    with zipfile.ZipFile(desk.zipped(files, "all.zip")) as packed:
        assert {name: packed.read(name) for name in packed.namelist()} == {
            file.name: file.read_bytes() for file in files
        }


def test_clearing_and_removing_leave_nothing(tmp_path):
    desk = Desk(tmp_path)
    with desk.showing("seen.png") as path:
        path.write_bytes(b"x")
    (desk.folder / "all.zip").write_bytes(b"x")

    assert not list(desk.cleared().folder.iterdir())
    desk.remove()
    assert not list(tmp_path.iterdir())


def test_clearing_waits_for_a_sketch_that_is_being_written(tmp_path):
    desk, cleared = Desk(tmp_path), threading.Event()

    def clear():
        desk.cleared()
        cleared.set()

    with desk.showing("sketch.png") as path:
        clearing = threading.Thread(target=clear)
        clearing.start()
        assert not cleared.wait(0.2)
        path.write_bytes(b"x")
    clearing.join(10)

    assert cleared.is_set()
    assert not list(desk.folder.iterdir())


def test_nothing_is_shown_to_one_who_has_left(tmp_path):
    desk = Desk(tmp_path)
    desk.remove()

    with pytest.raises(FileNotFoundError), desk.showing("sketch.png"):
        pass
    assert not list(tmp_path.iterdir())
