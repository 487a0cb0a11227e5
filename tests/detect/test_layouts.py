"""Every published layout is read into the same list, and nothing that is no picture of the set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect.layouts import LayoutError, read_layout
from detect.splits import crossing, split_by_group

TREES = {
    "genimage": {
        "sdv14/train/nature/n01440764_1.JPEG.jpg": (False, "train", "sdv14"),
        "sdv14/train/ai/001.sdv.png": (True, "train", "sdv14"),
        "biggan/val/ai/002.png": (True, "val", "biggan"),
    },
    "cnndetection": {
        "test/progan/airplane/0_real/a.png": (False, "test", "progan/airplane"),
        "test/progan/airplane/1_fake/a.png": (True, "test", "progan/airplane"),
        "train/crn/1_fake/deep/er/a.png": (True, "train", "crn"),
    },
    "diffusionforensics": {
        "images/train/imagenet/real/img1.png": (False, "train", "imagenet"),
        "images/train/imagenet/adm/img1.png": (True, "train", "adm"),
        "dire/train/imagenet/adm/img1.png": None,
        "recons/train/imagenet/real/img1.png": None,
    },
    "distildire": {
        "train/images/reals/a.b.png": (False, "train", None),
        "val/images/fakes/a.png": (True, "val", None),
        "train/dire/reals/a.b.png": None,
    },
    "cifake": {
        "train/REAL/0000 (2).jpg": (False, "train", None),
        "test/FAKE/0 (2).jpg": (True, "test", None),
    },
    "folders": {
        "real/a.png": (False, None, None),
        "generated/flux/a.png": (True, None, "flux"),
        "generated/b.png": (True, None, None),
    },
}


@pytest.mark.parametrize("layout", TREES)
def test_a_published_layout_is_recognised_by_its_paths(tmp_path, layout):
    for name in TREES[layout]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    read = read_layout(tmp_path)
    assert read.layout == layout
    found = {each.name: (each.generated, each.split, each.source) for each in read.samples}
    assert found == {name: facts for name, facts in TREES[layout].items() if facts is not None}
    assert read.unmatched == sum(facts is None for facts in TREES[layout].values())
    assert all(each.path == tmp_path / each.name for each in read.samples)


def test_groups_come_from_a_table_beside_the_folders(tmp_path):
    (tmp_path / "real").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "real" / name).touch()
    (tmp_path / "groups.csv").write_text("path,group\nreal/a.png,parent 7\n")
    assert [each.group for each in read_layout(tmp_path).samples] == ["parent 7", None]
    (tmp_path / "groups.csv").write_text("file,parent\n")
    with pytest.raises(LayoutError, match="columns path and group"):
        read_layout(tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(LayoutError, match="is no folder"):
        read_layout(tmp_path / "absent")


@given(groups=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_no_group_is_in_two_splits_and_no_added_picture_moves_another(groups, seed):
    shares = {"train": 0.6, "val": 0.1, "test": 0.3}
    splits = split_by_group(groups, shares, seed=seed)
    assert crossing(groups, splits) == []
    assert split_by_group([*groups, "new"], shares, seed=seed)[:-1] == splits


def test_shares_of_splits_hold_on_average():
    splits = split_by_group([str(number) for number in range(4000)], {"train": 0.8, "test": 0.2})
    assert splits.count("test") == pytest.approx(800, abs=4 * (4000 * 0.16) ** 0.5)
    assert set(split_by_group(["a", "b"], {"train": 1.0, "test": 0.0})) == {"train"}
    with pytest.raises(ValueError, match="sum to one"):
        split_by_group(["a"], {"train": 0.8})


def test_groups_that_cross_splits_are_named():
    assert crossing(["a", "a", "b"], ["train", "test", "test"]) == ["a"]
