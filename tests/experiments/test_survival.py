"""The measurement of what lasts: what it reports is recomputed by hand, at toy size."""

import csv
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from diffusion.model import Condition, PixelSpace
from diffusion.schedule import NoiseSchedule
from experiments import survival
from imaging.io import write
from imaging.metrics import psnr, ssim
from imaging.picture import Picture
from imaging.transforms import jpeg


class Mirror(PixelSpace):
    """An autoencoder of plain pixels, which reconstructs what it sees."""

    has_denoiser = False

    def __init__(self) -> None:
        super().__init__(
            NoiseSchedule.linear(),
            prediction="epsilon",
            name="mirror",
            multiple=8,
            latent_channels=3,
            comfortable=32,
        )
        self.kept = torch.nn.Parameter(torch.zeros(1))
        self.freeze()

    @property
    def denoiser(self) -> torch.nn.Module:
        raise TypeError

    def predict(self, z_t, t, condition=None) -> Tensor:
        raise TypeError

    def condition(self, prompts) -> Condition:
        return Condition()


IMAGE = (torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255).round() / 255


def rows(variants: list[str], **options) -> list[survival.Row]:
    made = {words: survival.variant(words, eps=8 / 255, steps=12) for words in variants}
    who = survival.thieves(Mirror(), prompt="", strengths=[0.3], seeds=(1, 2), precision=torch.float32)
    return list(survival.measure({"noise": IMAGE}, made, who, eps=8 / 255, **options))


def test_figures_are_those_of_the_versions_after_handling():
    found = rows(["photoguard", "photoguard --shape luma --eps 4"], handling=("file", "jpeg75"))
    assert [(row.method, row.handling) for row in found[:3]] == [
        (survival.CONTROL, "file"),
        ("photoguard", "file"),
        ("photoguard --shape luma --eps 4", "file"),
    ]
    assert [round(row.largest) for row in found[:3]] == [8, 8, 4]
    noisy = survival.random_signs(IMAGE, 8 / 255)
    handled = [jpeg(images, 75) for images in (noisy, IMAGE)]
    # This autoencoder returns what it is given, so the edits are the handled pictures themselves.
    assert found[0].change == pytest.approx(1 - ssim(noisy, IMAGE).item(), abs=1e-6)
    assert found[3].change == pytest.approx(1 - ssim(*handled).item(), abs=1e-6)
    assert found[0].psnr == pytest.approx(psnr(noisy, IMAGE).item())


def test_the_table_gives_the_share_that_is_left():
    found = rows(["photoguard"], handling=("file", "blur"))
    lines = survival.table(found).splitlines()
    assert lines[0] == "reconstruction:"
    assert lines[2].endswith("| blur |")
    plain, blurred = (row for row in found if row.method == "photoguard")
    assert lines[5].startswith("| photoguard | ")
    assert lines[5].endswith(f"| {blurred.change / plain.change:.2f} |")


def test_a_variant_is_what_the_command_line_would_make_of_it():
    method = survival.variant("mist --survive jpeg,blur --step-size 0.5 --eps 6", eps=8 / 255, steps=7)
    assert (method.survive, method.steps) == (("jpeg", "blur"), 7)
    assert (method.eps, method.step_size) == pytest.approx((6 / 255, 0.5 / 255))
    with pytest.raises(ValueError, match="no such option: --survvie; did you mean --survive"):
        survival.variant("mist --survvie jpeg", eps=8 / 255, steps=7)
    with pytest.raises(ValueError, match=r"got also 'a\.png'"):
        survival.variant("mist a.png", eps=8 / 255, steps=7)


def test_the_command_writes_rows_and_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(survival, "choose", lambda name: SimpleNamespace(load=Mirror))
    write(Picture((IMAGE * 255).round().to(torch.uint8)), tmp_path / "a.png")
    given = [str(tmp_path / "a.png"), "--variants", "photoguard", "--handling", "half", "--side", "32"]
    survival.main([*given, "--steps", "2", "--out", str(tmp_path / "out")])
    written = list(csv.DictReader((tmp_path / "out/rows.csv").read_text().splitlines()))
    assert [(row["method"], row["handling"]) for row in written] == [
        (name, handling) for handling in ("file", "half") for name in (survival.CONTROL, "photoguard")
    ]
    assert (tmp_path / "out/table.md").read_text() in capsys.readouterr().out
