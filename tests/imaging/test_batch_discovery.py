"""Which files a run takes and where its results go."""

import os
from pathlib import Path

import pytest

from imaging import UnsupportedPictureError
from imaging.batch.discover import Plan, PlanError, plan


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")


def pairs(made: Plan) -> list[tuple[str, str]]:
    return [(job.input.as_posix(), job.output.as_posix()) for job in made.jobs]


def test_a_result_lies_beside_its_input_as_png() -> None:
    touch("deep/cat.portrait.jpg")
    assert pairs(plan(["deep/cat.portrait.jpg"])) == [
        ("deep/cat.portrait.jpg", "deep/cat.portrait.protected.png")
    ]


def test_a_folder_stands_for_its_visible_pictures_by_suffix() -> None:
    touch("art/b.png", "art/a.JPG", "art/notes.txt", "art/.hidden.png", "art/._a.jpg", "art/below/c.webp")
    assert [job.input.name for job in plan(["art"]).jobs] == ["a.JPG", "b.png"]


def test_recursive_descends_and_mirrors_the_tree_below_out() -> None:
    touch("art/a.png", "art/below/deeper/c.webp", "art/.git/d.png")
    assert pairs(plan(["art"], recursive=True, out="safe")) == [
        ("art/a.png", "safe/a.protected.png"),
        ("art/below/deeper/c.webp", "safe/below/deeper/c.protected.png"),
    ]


def test_a_link_back_up_does_not_make_an_endless_walk() -> None:
    touch("art/below/a.png")
    os.symlink(Path("art").resolve(), "art/below/loop")
    assert [job.input.name for job in plan(["art"], recursive=True).jobs] == ["a.png"]


def test_a_pattern_is_expanded_and_mirrored_from_its_fixed_part() -> None:
    touch("art/a/1.png", "art/b/1.png", "art/b/x.txt")
    assert pairs(plan(["art/*/1.*"], out="safe/")) == [
        ("art/a/1.png", "safe/a/1.protected.png"),
        ("art/b/1.png", "safe/b/1.protected.png"),
    ]
    assert len(plan(["art/**"]).jobs) == 2


def test_a_name_that_exists_is_not_read_as_a_pattern() -> None:
    touch("a[1].png", "a1.png")
    assert [job.input.name for job in plan(["a[1].png"]).jobs] == ["a[1].png"]


def test_earlier_outputs_are_left_out_of_folders_patterns_and_lists() -> None:
    touch("a.png", "a.protected.png")
    for inputs in (["."], ["*.png"], ["a.png", "a.protected.png"]):
        made = plan(inputs)
        assert [job.input.name for job in made.jobs] == ["a.png"]
        assert [path.name for path in made.left_out] == ["a.protected.png"]


def test_an_earlier_output_alone_is_an_input_like_any_other() -> None:
    touch("a.protected.png")
    assert pairs(plan(["a.protected.png"])) == [("a.protected.png", "a.protected.protected.png")]


def test_a_file_that_is_reached_twice_counts_once() -> None:
    touch("art/a.png")
    assert len(plan(["art/a.png", "./art/a.png", "art", "art/*.png"]).jobs) == 1


def test_each_missing_input_is_a_problem_and_the_rest_goes_on() -> None:
    touch("a.png")
    Path("empty").mkdir()
    os.symlink("nowhere.png", "dangling.png")
    os.mkfifo("pipe.png")
    made = plan(["gone.png", "a.png", "empty", "none*.png", "dangling.png", "pipe.png", ""])
    assert [job.input.name for job in made.jobs] == ["a.png"]
    assert {problem.input: problem.reason for problem in made.problems} == {
        "gone.png": "does not exist",
        "empty": "holds no pictures",
        "none*.png": "matches no pictures",
        "dangling.png": "is a link that leads nowhere",
        "pipe.png": "is neither a file nor a folder",
        "": "is an empty name",
    }


def test_out_names_the_result_of_a_single_file() -> None:
    touch("a.png")
    assert pairs(plan(["a.png"], out="safe/b.jpg")) == [("a.png", "safe/b.jpg")]


@pytest.mark.parametrize("out", ["safe", "safe/", "v1.0/", "existing.d"])
def test_out_without_suffix_or_with_a_slash_or_existing_is_a_folder(out: str) -> None:
    touch("a.png", "existing.d/x")
    assert plan(["a.png"], out=out).jobs[0].output == Path(out) / "a.protected.png"


def test_out_with_an_unknown_suffix_is_refused_with_the_known_ones() -> None:
    touch("a.png")
    with pytest.raises(UnsupportedPictureError, match=r"b\.jpgg"):
        plan(["a.png"], out="b.jpgg")


def test_one_file_name_cannot_receive_several_results() -> None:
    touch("art/a.png", "art/b.png", "c.png")
    for inputs in (["art/a.png", "c.png"], ["art"], ["c.*"]):
        with pytest.raises(PlanError, match="names one file for several inputs"):
            plan(inputs, out="out.png")
    touch("plain")
    with pytest.raises(PlanError, match="--out plain is a file"):
        plan(["art"], out="plain")


def test_two_inputs_that_become_one_file_are_both_named() -> None:
    touch("a.jpg", "a.png")
    with pytest.raises(PlanError, match=r"a\.jpg and a\.png would both be written to a\.protected\.png"):
        plan(["a.jpg", "a.png"])


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_a_result_never_replaces_an_input(link) -> None:
    touch("a.png", "b.png")
    out = "a.png"
    if link:
        out = "other.png"
        link("a.png", out)
    with pytest.raises(PlanError, match=r"would replace the input a\.png"):
        plan(["a.png"], out=out)


def test_an_unreadable_folder_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("closed").mkdir()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    assert plan(["closed"]).problems[0].reason == "cannot be read (Permission denied)"
