"""`protect --verify` as people meet it: what it says, what it writes, exit codes, one line per mistake."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from diffusion.load import load
from imaging import metrics
from imaging.io import Picture, read, write
from imaging.perceptual import Lpips
from protect.cli import app
from protect.threats.img2img import Img2Img
from protect.threats.inpainting import Inpainting
from protect.verify.cli import _repeated
from protect.verify.thief import control
from purify import Chain

Verify = Callable[..., "Result"]


class Result:
    """Exit code and streams of one command."""

    def __init__(self, arguments: list[str]) -> None:
        result = CliRunner().invoke(app, arguments)
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception

    def row(self, threat: str, counter: str) -> list[str]:
        """The cells of a line of the table."""
        (found,) = (line.split() for line in self.out.splitlines() if line.split()[:2] == [threat, counter])
        return [cell for cell in found[2:] if cell != "dB"]


@pytest.fixture
def verify(tiny_diffusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Verify:
    """Run the command where a.png, its protected b.png and a mask lie, quickly and with a tiny model."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    original = torch.randint(20, 236, (1, 3, 40, 48), generator=generator)
    delta = torch.randint(-6, 7, original.shape, generator=generator)
    for name, integers in (("a.png", original), ("b.png", original + delta)):
        write(Picture(integers.to(torch.uint8)), name)
    mask = torch.zeros(1, 3, 40, 48, dtype=torch.uint8)
    mask[..., 10:30] = 255
    write(Picture(mask), "mask.png")
    quick = ["--verify", "--model", str(tiny_diffusion), "--steps", "4", "--seeds", "2", "--device", "cpu"]
    quick += ["--precision", "float32"]
    return lambda *arguments: Result([*quick, *arguments])


def pixels(name: str) -> Tensor:
    return read(name).pixels


def test_what_is_said_is_what_is_measured(verify: Verify, tiny_diffusion: Path) -> None:
    result = verify("a.png", "b.png", "--purifiers", "none", "jpeg75", "--report", "r.json")
    assert (result.code, result.err) == (0, "")
    original, protected = pixels("a.png"), pixels("b.png")
    assert "values differ by at most 6 of 255" in result.out
    assert f"PSNR {metrics.psnr(protected, original).item():.1f} dB" in result.out
    assert f"SSIM {metrics.ssim(protected, original).item():.3f}" in result.out
    assert "seeds 1000 to 1001" in result.out
    assert "raises the cost of misuse; does not guarantee" in result.out

    model, threat = load(str(tiny_diffusion)), Img2Img(steps=4)
    noisy, clean = control(original, protected), threat(model, original, seed=(1000, 1001))

    def apart(one: Tensor, other: Tensor) -> float:
        return float((1 - metrics.ssim(one, other)).mean())

    (record,) = json.loads(Path("r.json").read_text())
    assert set(record["pairs"]) == {"damage", "control", "short", "price", "drift", "natural_drift"}
    for found, words in zip(record["findings"], ("none", "jpeg75"), strict=True):
        chain = Chain(words)
        before, after, idle = (
            threat(model, chain(each), seed=(1000, 1001)) for each in (original, protected, noisy)
        )
        expected = {
            "damage": apart(after, before),
            "control": apart(idle, before),
            "short": apart(after, clean),
            "price": apart(before, clean),
            "drift": apart(after, original.expand_as(after)),
            "natural_drift": apart(before, original.expand_as(before)),
            "psnr": float(metrics.psnr(after, before).mean()),
        }
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
        assert found["ratio"] == pytest.approx(found["damage"] / found["control"])
        assert found["counter_measure"] == words
        shown = result.row("img2img", words)
        assert shown[0] == f"{found['damage']:.4f}"
        assert shown[1] == f"{found['control']:.4f}"
    first, second = record["findings"]
    assert first["kept"] == 1
    assert second["kept"] == pytest.approx(second["damage"] / first["damage"])


def test_several_threats_are_tried_and_drawn(verify: Verify) -> None:
    threats = ("--threats", "img2img0.25", "img2img0.5", "--purifiers", "none", "crop10")
    Path("s.png").write_bytes(Path("mask.png").read_bytes())
    Path("r.json").write_text("{}")
    written = ("--sheet", "s.png", "--report", "r.json")
    assert verify("a.png", "b.png", "--purifiers", "none", *written, "--overwrite").code == 0
    result = verify(*threats, *written, "a.png", "b.png")
    assert result.code == 0, result.err
    for threat in ("img2img0.25", "img2img0.5"):
        assert result.row(threat, "none")[3] == "100%"
        assert result.row(threat, "crop10")[-2:] == ["-", "-"]  # a shifted picture is compared with its like
        assert f"{threat}: without a counter-measure the result differs by" in result.out
    sheet = read("s.png")
    assert sheet.height > 4 * 40
    assert sheet.width > 6 * 48


def test_inpainting_keeps_what_is_white_and_is_judged_by_the_rest(
    verify: Verify, tiny_inpainting: Path
) -> None:
    repaint = ("--threats", "inpainting", "--mask", "mask.png", "--model", str(tiny_inpainting))
    result = verify("a.png", "b.png", *repaint, "--purifiers", "none")
    assert result.code == 0, result.err
    mask = torch.ones(1, 1, 40, 48)
    mask[..., 10:30] = 0
    threat, model = Inpainting(steps=4, mask=mask), load(str(tiny_inpainting))
    before, after = (threat(model, pixels(name), seed=(1000, 1001)) for name in ("a.png", "b.png"))
    error = (mask * (after - before)).square().mean((1, 2, 3)) / mask.mean()
    assert result.row("inpainting", "none")[4] == f"{-10 * error.log10().mean().item():.1f}"


def test_a_perceptual_distance_is_told_where_its_weights_are_given(verify: Verify) -> None:
    distance = Lpips()
    heads = {name: each.abs() for name, each in distance.state_dict().items()}
    distance.load_state_dict(heads)
    save_file(heads, "lpips.safetensors")
    weights = ("--lpips", "lpips.safetensors", "--report", "r.json")
    result = verify("a.png", "b.png", "--purifiers", "none", *weights)
    assert result.code == 0, result.err
    (record,) = json.loads(Path("r.json").read_text())
    seen = float(distance(pixels("b.png"), pixels("a.png")))
    assert record["lpips"] == pytest.approx(seen)
    assert f"LPIPS {seen:.3f}" in result.out
    assert record["findings"][0]["lpips"] >= 0


def test_training_on_the_picture_is_a_threat_as_well(verify: Verify) -> None:
    learning = ("--threats", "low-rank2", "--learning-steps", "2", "--prompt", "sks", "--seeds", "1")
    result = verify("a.png", "b.png", *learning, "--purifiers", "none")
    assert result.code == 0, result.err
    assert "rank 2" in result.out
    assert "learning steps 2" in result.out
    assert result.row("low-rank2", "none")[4] != "inf"  # what was learned from the two is not the same


def test_a_purifier_with_a_model_has_its_own_prior(verify: Verify, tiny_diffusion: Path) -> None:
    result = verify("a.png", "b.png", "--purifiers", "diffpure3+jpeg75", "--prior", str(tiny_diffusion))
    assert result.code == 0, result.err
    damage, noise, _, kept, *_ = result.row("img2img", "diffpure3+jpeg75")
    assert kept == "-"  # a share of what is unknown without `none`
    assert float(damage) >= 0
    assert float(noise) >= 0


def test_a_large_picture_is_judged_by_its_centre(verify: Verify) -> None:
    generator = torch.Generator().manual_seed(0)
    large = torch.randint(20, 236, (1, 3, 100, 80), generator=generator)
    changed = large.clone()
    changed[..., :10, :] += 3
    for name, integers in (("large.png", large), ("changed.png", changed)):
        write(Picture(integers.to(torch.uint8)), name)
    result = verify("large.png", "changed.png", "--purifiers", "none")
    assert result.code == 0, result.err
    assert "the centre, 64 x 64 px, of 80 x 100 px" in result.out
    assert "values differ by at most 3 of 255, and 10% of pixels do" in result.out
    assert result.row("img2img", "none")[:3] == ["0.0000", "0.0000", "-"]  # nothing of it is in the centre


MISTAKES: dict[str, tuple[list[str], str]] = {
    "none": ([], "two pictures are compared, ORIGINAL and PROTECTED; got 0"),
    "one": (["a.png"], "got 1"),
    "three": (["a.png", "b.png", "b.png"], "got 3"),
    "missing": (["a.png", "gone.png"], "'gone.png' does not exist"),
    "no picture": (["a.png", "text.png"], "text.png"),
    "other size": (
        ["a.png", "small.png"],
        "has 48 x 40 px in 1 frame(s) and the protected picture 32 x 40 px",
    ),
    "identical": (["a.png", "a.png"], "the two pictures are identical"),
    "threat": (
        ["a.png", "b.png", "--threats", "img2mig"],
        "unknown threat 'img2mig'; did you mean 'img2img'?",
    ),
    "purifier": (
        ["a.png", "b.png", "--purifiers", "jpg75"],
        "unknown counter-measure 'jpg75'; did you mean 'jpeg'?",
    ),
    "quality": (["a.png", "b.png", "--purifiers", "jpeg500"], "JPEG quality must lie between 1 and 100"),
    "no mask": (["a.png", "b.png", "--threats", "inpainting"], "inpainting needs --mask FILE"),
    "white mask": (
        ["a.png", "b.png", "--threats", "inpainting", "--mask", "white.png"],
        "--mask: the mask is white everywhere",
    ),
    "mask of other size": (
        ["a.png", "b.png", "--threats", "inpainting", "--mask", "small.png"],
        "--mask: the mask is 32 x 40 px and the picture 48 x 40 px",
    ),
    "instructions": (["a.png", "b.png", "--threats", "instruction"], "take one that follows instructions"),
    "model": (["a.png", "b.png", "--model", "sd51"], "unknown model 'sd51'"),
    "option": (["a.png", "b.png", "--thraets", "img2img"], "No such option: --thraets"),
    "strength": (["a.png", "b.png", "--threats", "img2img1.5"], "strength 1.5 of 4 steps leaves 6 to run"),
    "report is input": (["a.png", "b.png", "--report", "b.png"], "--report b.png would replace an input"),
    "sheet is input": (["a.png", "b.png", "--sheet", "./a.png"], "--sheet ./a.png would replace an input"),
    "sheet is mask": (
        ["a.png", "b.png", "--mask", "mask.png", "--sheet", "mask.png"],
        "would replace an input",
    ),
    "report is another's": (["a.png", "b.png", "--report", "text.png"], "text.png exists and is not of an"),
    "sheet is a picture": (["a.png", "b.png", "--sheet", "mask.png"], "or --overwrite replaces it"),
    "sheet suffix": (["a.png", "b.png", "--sheet", "s.txt"], "no picture format"),
    "lpips": (
        ["a.png", "b.png", "--lpips", "gone.safetensors"],
        "there are no LPIPS weights gone.safetensors",
    ),
    "guidance": (["a.png", "b.png", "--guidance", "nan"], "--guidance is a number; got nan"),
    "seeds": (["a.png", "b.png", "--seeds", "0"], "--seeds"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(verify: Verify, draw, mistake: str) -> None:
    draw("small.png", 40, 32)
    write(Picture(torch.full((1, 3, 40, 48), 255, dtype=torch.uint8)), "white.png")
    Path("text.png").write_text("not a picture at all, but long enough to look at " * 3)
    before = {path.name: path.read_bytes() for path in Path.cwd().iterdir()}
    arguments, message = MISTAKES[mistake]
    result = verify(*arguments)
    assert result.code == 2
    assert message in result.err
    assert result.err.startswith("protect --verify: ")
    assert result.err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in Path.cwd().iterdir()} == before


def test_an_autoencoder_alone_cannot_edit(verify: Verify, tiny_autoencoder: Path) -> None:
    result = verify("a.png", "b.png", "--model", str(tiny_autoencoder))
    assert result.code == 2
    assert "is an autoencoder alone, which Img2Img cannot use; take a full model" in result.err


def test_the_pictures_stay_as_they_are_and_nothing_is_written_unasked(verify: Verify) -> None:
    before = {path.name: path.read_bytes() for path in Path.cwd().iterdir()}
    result = verify("a.png", "b.png", "--purifiers", "none", "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert {path.name: path.read_bytes() for path in Path.cwd().iterdir()} == before


def test_lists_end_at_a_flag_or_a_picture() -> None:
    given = ["--threats", "a", "b", "one.png", "two.PNG", "--purifiers", "c", "--seeds", "2", "three.webp"]
    assert _repeated(given) == [
        *("--threats", "a", "--threats", "b", "one.png", "two.PNG"),
        *("--purifiers", "c", "--seeds", "2", "three.webp"),
    ]
    assert _repeated(["--threats", "a", "--threats", "b"]) == ["--threats", "a", "--threats", "b"]


def test_its_help_is_its_own_and_imports_nothing_heavy() -> None:
    code = "import sys; from protect.cli import app; app(['--verify', '--help'], standalone_mode=False);"
    code += " print(sorted({'torch', 'diffusers', 'PIL', 'numpy'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"
    for words in ("protect --verify", "--threats", "--purifiers", "img2img", "jpeg75+half"):
        assert words in result.stdout.replace("\n", " ")
