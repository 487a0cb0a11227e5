import pytest
import torch

from imaging.sheet import LARGEST_SHEET, Row, contact_sheet, magnified

RED = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)


def plain(height: int, width: int) -> torch.Tensor:
    return RED.expand(3, height, width)


def is_red(sheet: torch.Tensor) -> torch.Tensor:
    return (sheet[0] == RED).all(0)


def test_a_picture_smaller_than_its_cell_keeps_every_pixel() -> None:
    picture = torch.rand(3, 20, 30).mul(255).round() / 255
    sheet = contact_sheet([Row("one", (picture,))], ["original"], cell=64)[0]
    windows = sheet.unfold(1, 20, 1).unfold(2, 30, 1)
    found = (windows == picture[:, None, None]).all(0).flatten(-2).all(-1)
    assert found.sum() == 1


def test_a_wide_picture_is_scaled_to_the_cell_and_keeps_its_shape() -> None:
    red = is_red(contact_sheet([Row("wide", (plain(200, 400),))], ["original"], cell=100))
    rows, columns = red.any(1).sum(), red.any(0).sum()
    assert (rows, columns) == (50, 100)


def test_cells_are_no_larger_than_what_they_show() -> None:
    small, large = (contact_sheet([Row("x", (plain(side, 40),))], ["a"]).shape[-1] for side in (200, 900))
    assert small < 320 < large


def test_an_empty_cell_stays_paper() -> None:
    sheet = contact_sheet([Row("half", (plain(50, 50), None))], ["a", "b"], cell=64)
    assert is_red(sheet).sum() == 50 * 50


def test_a_thousand_rows_stay_below_the_limit_and_the_rest_is_counted() -> None:
    rows = [Row(str(index), (plain(128, 128),) * 5) for index in range(1000)]
    sheet = contact_sheet(rows, ["a", "b", "c", "d", "e"])
    assert sheet[0, 0].numel() <= LARGEST_SHEET
    assert is_red(sheet).sum() % (5 * 128 * 128) == 0
    assert is_red(sheet).sum() < 1000 * 5 * 128 * 128


def test_captions_of_any_length_and_characters_are_drawn() -> None:
    caption = "a very long name \n\0 \U0001f98a " * 40
    sheet = contact_sheet([Row(caption, (plain(32, 32),))], ["heading " * 30], cell=64)
    assert (sheet < 0.5).any()


def test_values_outside_the_range_are_clipped() -> None:
    sheet = contact_sheet([Row("x", (plain(32, 32) * 3 - 1,))], ["a"], cell=64)
    assert is_red(sheet).sum() == 32 * 32


def test_a_change_is_shown_eight_times_around_grey() -> None:
    original = torch.full((3, 2, 2), 0.5)
    shown = magnified(original, original + torch.tensor([0.0, 8 / 255, -1.0]).view(3, 1, 1))
    torch.testing.assert_close(shown[:, 0, 0], torch.tensor([0.5, 0.5 + 64 / 255, 0.0]))


def test_rows_must_match_the_headings() -> None:
    with pytest.raises(ValueError, match="'x' has 1 cells for 2 headings"):
        contact_sheet([Row("x", (None,))], ["a", "b"])
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet([], ["a"])
