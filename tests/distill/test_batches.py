"""Batches: their augmentation, and that they do not depend on who asks and where one stopped."""

import pytest
import torch

from distill.batches import Batches, crop_and_flip, unchanged
from distill.images import Labelled


def numbered(count, classes=10):
    """Pictures that say their own number in every pixel."""
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
    return Labelled(pixels, torch.arange(count) % classes, classes)


def test_crops_are_windows_of_the_padded_picture_and_half_of_them_are_mirrored():
    pixels = torch.randint(
        1, 256, (64, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    found = crop_and_flip(pixels, torch.Generator().manual_seed(1), padding=2)
    assert found.shape == pixels.shape
    mirrored, windows = 0, set()
    for one, picture in zip(found, pixels, strict=True):
        padded = torch.nn.functional.pad(picture, (2, 2, 2, 2))
        matches = [
            (flip, top, left)
            for flip in (False, True)
            for top in range(5)
            for left in range(5)
            if torch.equal(one.flip(2) if flip else one, padded[:, top : top + 6, left : left + 5])
        ]
        assert len(matches) == 1
        mirrored += matches[0][0]
        windows.add(matches[0][1:])
    assert 20 < mirrored < 44
    assert len(windows) > 15


def test_each_pass_holds_every_picture_once_in_another_order():
    batches = Batches(numbered(20), 5, augment=unchanged)
    first, second = (
        torch.cat([labels + 0 * pixels[:, 0, 0, 0].long() for pixels, labels in batches]) for _ in "ab"
    )
    seen = [torch.cat([pixels[:, 0, 0, 0] for pixels, _ in Batches(numbered(20), 5, augment=unchanged)])]
    assert seen[0].sort().values.tolist() == list(range(20))
    assert first.tolist() != second.tolist()
    assert first.sort().values.tolist() == second.sort().values.tolist()


def test_processes_share_a_batch_and_its_augmentation():
    whole = list(Batches(numbered(20), 8, seed=3))
    parts = [list(Batches(numbered(20), 8, seed=3, rank=rank, world=2)) for rank in range(2)]
    assert len(whole) == 2
    for number, (pixels, labels) in enumerate(whole):
        for rank in range(2):
            assert torch.equal(parts[rank][number][0], pixels[rank::2])
            assert torch.equal(parts[rank][number][1], labels[rank::2])


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_batches_go_on_where_they_stopped(stop):
    def draw(batches, count):
        found = []
        while len(found) < count:
            for batch in batches:
                found.append(batch)
                if len(found) == count:
                    break
        return found

    unbroken = draw(Batches(numbered(12), 4), 8)
    first = Batches(numbered(12), 4)
    found = draw(first, stop)
    second = Batches(numbered(12), 4)
    second.load_state_dict(first.state_dict())
    found += draw(second, 8 - stop)
    for one, other in zip(found, unbroken, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_generated_pictures_take_their_share_of_every_batch():
    made = Labelled(torch.full((30, 3, 4, 4), 200, dtype=torch.uint8), torch.full((30,), 7), 10)
    batches = Batches(numbered(40), 10, generated=made, generated_share=0.7, augment=unchanged)
    assert len(batches) == 4
    real = []
    for pixels, labels in batches:
        generated = pixels[:, 0, 0, 0] == 200
        assert int(generated.sum()) == 7
        assert (labels[generated] == 7).all()
        real += pixels[~generated, 0, 0, 0].tolist()
    assert len(set(real)) == 12


@pytest.mark.parametrize(("size", "world"), [(0, 1), (21, 1), (5, 2)])
def test_batches_that_cannot_be_made_are_refused(size, world):
    with pytest.raises(ValueError, match="is not shared by"):
        Batches(numbered(20), size, world=world)
