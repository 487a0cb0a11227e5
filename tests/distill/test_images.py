"""Data: every form that is read, what is refused, and what is held out."""

import json
import pickle

import numpy as np
import pytest
import torch

from distill.data import LabelledImages
from distill.images import labelled


@pytest.fixture
def pictures():
    """Forty random pictures and their classes, as numpy arrays of height, width, colour."""
    drawn = np.random.default_rng(0)
    return drawn.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8), np.arange(40) % 10


def first_last(pictures):
    return torch.from_numpy(pictures[0]).permute(0, 3, 1, 2), torch.from_numpy(pictures[1])


def write_rows(root, pictures):
    from PIL import Image

    Image.fromarray(pictures[0].reshape(40, 1024, 3)).save(root / "data_batch_1.png")
    (root / "train_lables.json").write_text(json.dumps(pictures[1].tolist()))
    return root


def write_columns(root, pictures):
    from PIL import Image

    Image.fromarray(pictures[0].reshape(-1, 32, 3)).save(root / "test_000.webp", lossless=True)
    np.save(root / "test_labels.npy", pictures[1].astype(np.uint8))
    return root


def write_cifar100(root, pictures):
    folder = root / "cifar-100-python"
    folder.mkdir()
    data = pictures[0].transpose(0, 3, 1, 2).reshape(40, -1)
    (folder / "train").write_bytes(pickle.dumps({"data": data, "fine_labels": pictures[1].tolist()}))
    return root


def write_npz(root, pictures):
    np.savez(root / "some.npz", images=pictures[0], labels=pictures[1])
    return root / "some.npz"


def write_folders(root, pictures):
    from PIL import Image

    for number, (picture, label) in enumerate(zip(*pictures, strict=True)):
        folder = root / "train" / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number:02}.png")
    return root


@pytest.mark.parametrize("write", [write_rows, write_columns, write_npz])
def test_pictures_are_read_bit_by_bit_in_order(tmp_path, pictures, write):
    found = labelled(write(tmp_path, pictures), train=write is not write_columns)
    pixels, labels = first_last(pictures)
    assert torch.equal(found.pixels, pixels)
    assert torch.equal(found.labels, labels)
    assert found.classes == 10


def test_class_folders_are_classes_in_the_order_of_their_names(tmp_path, pictures):
    found = labelled(write_folders(tmp_path, pictures), train=True)
    pixels, labels = first_last(pictures)
    order = labels.sort(stable=True).indices
    assert torch.equal(found.pixels, pixels[order])
    assert torch.equal(found.labels, labels[order])
    assert found.classes == 10


def test_a_reader_agrees_with_the_one_that_evaluations_use(tmp_path, pictures):
    from experiments.cifar import cifar10

    root = write_rows(tmp_path, pictures)
    pixels, labels = cifar10(root, train=True)
    found = labelled(root, train=True)
    assert torch.equal(found.pixels, pixels)
    assert torch.equal(found.labels, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.arange(40)}, None),
        ({"labels": np.arange(40) - 1}, "labels lie in 0 to 38; got -1 to 38"),
        ({"classes": 5}, "labels lie in 0 to 4; got 0 to 9"),
        ({"labels": np.arange(11)}, "40 pictures have 11 labels"),
        ({"images": np.zeros((40, 32, 32, 3), np.float32)}, "are not bytes"),
    ],
)
def test_an_npz_that_does_not_fit_together_is_refused(tmp_path, pictures, change, message):
    np.savez(tmp_path / "some.npz", **{"images": pictures[0], "labels": pictures[1], **change})
    if message is None:
        assert labelled(tmp_path / "some.npz", train=True).classes == 40
        return
    with pytest.raises(ValueError, match=message):
        labelled(tmp_path / "some.npz", train=True)


def test_what_is_not_there_is_said(tmp_path, pictures):
    with pytest.raises(FileNotFoundError, match="holds no train pictures"):
        labelled(tmp_path, train=True)
    np.savez(tmp_path / "some.npz", x=pictures[0])
    with pytest.raises(ValueError, match="holds x, not 'images'"):
        labelled(tmp_path / "some.npz", train=True)


def test_pictures_of_two_sizes_are_refused(tmp_path, pictures):
    from PIL import Image

    root = write_folders(tmp_path, pictures)
    Image.fromarray(pictures[0][0].repeat(2, 0)).save(root / "train" / "class3" / "zz.png")
    with pytest.raises(ValueError, match=r"have one size, here \(32, 32\); .*zz.png has \(64, 32\)"):
        labelled(root, train=True)


def test_what_is_held_out_is_never_trained_on(tmp_path, pictures):
    root = write_npz(tmp_path, pictures)
    data = LabelledImages(str(root), held_out=4, limit=6)
    data.setup("fit")
    whole = {picture.numpy().tobytes() for picture in first_last(pictures)[0]}
    held, trained = (
        {picture.numpy().tobytes() for picture in part.pixels} for part in (data.validation, data.training)
    )
    assert (len(held), len(trained)) == (4, 6)
    assert not held & trained
    assert held | trained < whole


@pytest.mark.parametrize("held_out", [0, 40, 100])
def test_no_part_can_be_empty(tmp_path, pictures, held_out):
    data = LabelledImages(str(write_npz(tmp_path, pictures)), held_out=held_out)
    with pytest.raises(ValueError, match="cannot be held out"):
        data.setup("fit")


def test_cifar100_is_read_through_torchvision(tmp_path, pictures, monkeypatch):
    from torchvision.datasets import CIFAR100

    # its check compares with the real files' checksums
    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR100, "train_list", [["train", None]])
    monkeypatch.setattr(CIFAR100, "_load_meta", lambda self: None)
    found = labelled(write_cifar100(tmp_path, pictures), train=True)
    pixels, labels = first_last(pictures)
    assert torch.equal(found.pixels, pixels)
    assert torch.equal(found.labels, labels)
    assert found.classes == 100
