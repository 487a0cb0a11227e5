"""The outlines that a thief may paint, and the table's ratios, of numbers made up for it."""

import pytest
import torch
from skimage.morphology import convex_hull_image

from experiments.inpainting import SEEN, Row, by_mask, outlines, table
from experiments.protection import CONTROL

DAMAGES = {CONTROL: 0.01, "photoguard": 0.1, "diffusionguard": 0.15}


@pytest.mark.parametrize("seed", range(4))
def test_outlines_of_one_figure_relate_as_their_names_say(seed):
    masks = {name: mask[0, 0].bool() for name, mask in outlines(128, seed).items()}
    seen = masks.pop(SEEN)
    assert len(masks) >= 4
    assert all(not torch.equal(mask, seen) and mask.any() and not mask.all() for mask in masks.values())
    for name in ("box", "hull", "wider"):
        assert not (seen & ~masks[name]).any(), name
    assert not (masks["narrower"] & ~seen).any()
    assert not (masks["ellipse"] & ~masks["box"]).any()
    hull = convex_hull_image(seen.numpy(), offset_coordinates=False)
    assert not (hull & ~masks["hull"].numpy()).any()  # of half-planes in 64 directions: a little wider
    assert (masks["hull"].numpy() & ~hull).sum() < 0.02 * hull.sum()


def rows():
    return [
        Row(f"picture{number}", method, mask, seed, damage * (1 + number), 30.0, 40.0, 0.9, 5.0)
        for number in range(3)
        for method, damage in DAMAGES.items()
        for mask in (SEEN, "box", "hull")
        for seed in (101, 102)
    ]


def test_the_table_compares_with_the_control_and_with_photoguard():
    lines = {line.split("|")[1].strip(): line.split("|")[2:] for line in table(rows()).splitlines()}
    cells = [cell.strip() for cell in lines["diffusionguard"]]
    assert cells[0] == cells[2] == "0.3"  # 0.15 times the mean of 1, 2 and 3
    assert cells[1] == "0.15 to 0.45"
    assert cells[4:7] == ["15.00", "1.50", "1.50 to 1.50"]


def test_each_mask_has_its_column():
    head, _, control, *_ = by_mask(rows()).splitlines()
    assert head == "| method | seen | box | hull |"
    assert control == f"| {CONTROL} | 0.02 | 0.02 | 0.02 |"
