"""Pictures of one subject protected together: tiles, rounds, files of a set, and the command line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from imaging.batch.discover import plan
from imaging.io import read
from imaging.picture import Picture
from protect.cli import app
from protect.collective import OnePictureError, training_view
from protect.command.batch import Recipe, Record, run
from protect.methods import create
from protect.methods.antidreambooth import ASPL, FSMG
from protect.picture import protect_image
from protect.pictures import protect_images
from protect.promise import promise

QUICK = {"lora": False, "prior_images": 0, "train_steps": 1}
LEARNING = ASPL(steps=4, rounds=2, learning_rate=0.5, **QUICK)
UNLEARNED = ASPL(steps=4, rounds=2, **{**QUICK, "train_steps": 0})
RECIPE = Recipe("aspl", LEARNING, "pixel-world", promise("aspl", "pixel-world"), precision="float32")
Runner = Callable[..., list[Record]]


def images(height, width, seed=0):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


SUBJECT = [images(48, 64), images(150, 70, seed=1), images(33, 41, seed=2)]


@pytest.mark.parametrize(
    "method", [LEARNING, UNLEARNED, FSMG(steps=2, **QUICK)], ids=["aspl", "plain", "fsmg"]
)
def test_pictures_of_any_sizes_stay_within_the_bound_and_off_their_masks(world, method):
    masks = [None, torch.zeros(1, 1, 150, 70), torch.ones(1, 1, 33, 41)]
    masks[1][..., :90, :] = 1
    made = method.protect_set(SUBJECT, world, masks=masks, generator=seeded())
    for before, after in zip(SUBJECT, made, strict=True):
        assert after.shape == before.shape
        assert 0 < (after - before).abs().max() <= method.eps + 1e-6
        assert after.min() >= 0
        assert after.max() <= 1
    assert torch.equal(made[1][..., 90:, :], SUBJECT[1][..., 90:, :])
    assert world.largest_seen <= world.comfortable
    again = method.protect_set(SUBJECT, world, masks=masks, generator=seeded())
    assert all(torch.equal(*pair) for pair in zip(made, again, strict=True))


def test_rounds_go_on_from_where_the_last_one_ended(world):
    method = replace(UNLEARNED, steps=6, rounds=6, step_size=1 / 255)
    made = method.protect_set(SUBJECT, world, generator=seeded())
    # A random walk of six steps of one level reaches further than the one step of a round.
    assert all((after - before).abs().max() > 2.5 / 255 for before, after in zip(SUBJECT, made, strict=True))


def test_without_learning_a_picture_does_not_depend_on_the_others_and_with_it_does(world):
    for method, expected in ((UNLEARNED, True), (LEARNING, False)):
        one, other = (
            method.protect_set([SUBJECT[0], beside], world, generator=seeded()) for beside in SUBJECT[1:]
        )
        assert torch.equal(one[0], other[0]) is expected


def test_aspl_attacks_a_copy_that_saw_the_clean_pictures_and_learns_the_perturbed_ones(world, monkeypatch):
    from protect.methods import antidreambooth as module

    seen = []

    def learned(twin, z, *_, parameters, **how):
        seen.append((z.clone(), twin.factor.item(), how["steps"]))
        (weight,) = parameters
        weight.data += 1.0 if len(seen) % 2 else 10.0

    monkeypatch.setattr(module, "train", learned)
    replace(LEARNING, rounds=3, train_steps=5).protect_set(SUBJECT[:2], world, generator=seeded())
    clean = torch.cat([training_view(image, 48) for image in SUBJECT[:2]])
    # clean, perturbed, clean, perturbed, clean: the copy's step of 1 is undone, the model's of 10 stays
    assert [torch.equal(z, clean) for z, *_ in seen] == [True, False, True, False, True]
    assert [factor for _, factor, _ in seen] == pytest.approx([0.5, 0.5, 10.5, 10.5, 20.5])
    assert {steps for *_, steps in seen} == {5}
    assert (seen[3][0] - clean).abs().mean() > (seen[1][0] - clean).abs().mean()
    assert world.factor.item() == 0.5


@pytest.mark.parametrize(("height", "width"), [(40, 64), (64, 40), (40, 40), (80, 200)])
def test_a_training_view_is_the_centre_at_the_side_asked_for(height, width):
    ramp = torch.linspace(0, 1, width).expand(1, 3, height, width)
    view = training_view(ramp, 40)
    assert view.shape == (1, 3, 40, 40)
    assert view.mean().item() == pytest.approx(0.5, abs=0.02)
    if min(height, width) == 40:
        left, top = (width - 40) // 2, (height - 40) // 2
        assert torch.equal(view, ramp[..., top : top + 40, left : left + 40])


def test_one_picture_is_refused_in_one_line(world):
    with pytest.raises(
        OnePictureError, match="ASPL learns a subject from several pictures: give two or more"
    ):
        LEARNING.protect_set(SUBJECT[:1], world)
    with pytest.raises(OnePictureError, match="give two or more of it together, with protect_images"):
        protect_image(images(40, 40), LEARNING, world)
    with pytest.raises(ValueError, match="learns a subject from several pictures"):
        protect_images([Picture.from_pixels(images(40, 40))], LEARNING, world)
    with pytest.raises(ValueError, match="Mist takes pictures one by one"):
        protect_images([Picture.from_pixels(images(40, 40))] * 2, "mist", world)
    with pytest.raises(ValueError, match="one mask for each picture, or None; got 1 for 2"):
        protect_images([Picture.from_pixels(images(40, 40))] * 2, LEARNING, world, masks=[None])


def test_the_function_takes_paths_and_pictures_keeps_what_is_hidden_and_tells_how_far_it_is(world, draw):
    alpha = torch.full((1, 1, 40, 48), 255, dtype=torch.uint8)
    alpha[..., :10] = 0
    first, shares = replace(read(draw("a.png")), alpha=alpha), []
    mask = torch.ones(1, 1, 72, 80)
    mask[..., 40:] = 0
    second = draw("b.png", 72, 80, seed=1)
    made = protect_images(
        [first, second], LEARNING, world, masks=[None, mask], precision="float32", callback=shares.append
    )
    changes = [
        made[0].integers.int() - first.integers.int(),
        made[1].integers.int() - read(second).integers.int(),
    ]
    assert all(0 < change.abs().max() <= 8 for change in changes)
    assert changes[0][..., :10].abs().max() == 0
    assert changes[1][..., 40:].abs().max() == 0
    assert torch.equal(made[0].alpha, alpha)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_frames_of_an_animation_are_pictures_of_the_subject(world, draw):
    animation = read(draw("a.webp", frames=2))
    (made,) = protect_images([animation], LEARNING, world, precision="float32")
    assert made.durations == animation.durations
    assert all((made.frame(i).integers != animation.frame(i).integers).any() for i in range(2))


@pytest.fixture
def protect(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.chdir(tmp_path)
    return lambda *inputs, recipe=RECIPE, **options: list(run(plan(inputs), recipe, lambda: world, **options))


def test_a_set_of_files_is_written_with_a_record_each_and_a_second_run_skips_them(
    protect: Runner, draw
) -> None:
    draw("a.png", 40, 48)
    draw("b.png", 72, 80, seed=1)
    records = protect("a.png", "b.png")
    assert [(record.status, record.output) for record in records] == [
        ("done", "a.protected.png"),
        ("done", "b.protected.png"),
    ]
    assert all(record.linf and 0 < record.linf <= 8 for record in records)
    before = Path("b.protected.png").read_bytes()
    assert [record.status for record in protect("b.png", "a.png")] == ["skipped", "skipped"]
    Path("b.protected.png").unlink()
    assert [record.status for record in protect("a.png", "b.png")] == ["skipped", "done"]
    assert Path("b.protected.png").read_bytes() == before


def test_another_picture_in_the_set_is_another_work_that_replaces_nothing(protect: Runner, draw) -> None:
    draw("a.png")
    draw("b.png", seed=1)
    draw("c.png", seed=2)
    protect("a.png", "b.png")
    records = protect("a.png", "b.png", "c.png")
    assert [record.status for record in records] == ["failed", "failed", "done"]
    assert all("--overwrite replaces it" in str(record.error) for record in records[:2])


def test_a_broken_file_fails_alone_and_is_no_member_of_the_set(protect: Runner, draw) -> None:
    draw("a.png")
    draw("c.png", 72, 80, seed=1)
    alone = {record.input: Path(record.output or "").read_bytes() for record in protect("a.png", "c.png")}
    Path("b.png").write_text("not a picture at all, but long enough to look at " * 3)
    records = protect("a.png", "b.png", "c.png", "gone.png", overwrite=True)
    assert [(record.input, record.status) for record in records] == [
        ("gone.png", "failed"),
        ("a.png", "done"),
        ("b.png", "failed"),
        ("c.png", "done"),
    ]
    assert "no picture" in str(records[2].error)
    assert {record.input: Path(record.output).read_bytes() for record in records if record.output} == alone


def test_a_mask_of_another_size_fails_that_picture_only(protect: Runner, draw) -> None:
    for name, height in (("a.png", 40), ("b.png", 40), ("c.png", 56)):
        draw(name, height, 48, seed=height)
    where = torch.ones(1, 1, 40, 48, dtype=torch.bool)
    records = protect("a.png", "b.png", "c.png", recipe=replace(RECIPE, mask=where, mask_digest="0"))
    assert [record.status for record in records] == ["done", "done", "failed"]
    assert "48 x 40 px and the picture 48 x 56 px" in str(records[2].error)


def test_what_spoils_the_joint_work_is_told_of_each_picture_and_computed_once(
    protect: Runner, draw, world
) -> None:
    draw("a.png")
    draw("b.png", seed=1)
    with torch.no_grad():
        world.factor.fill_(torch.nan)
    records = protect("a.png", "b.png")
    assert [record.status for record in records] == ["failed", "failed"]
    assert all("not finite at step 0" in str(record.error) for record in records)
    assert not list(Path.cwd().glob("*.protected.*"))


def test_a_single_readable_picture_of_several_fails_with_the_reason(protect: Runner, draw) -> None:
    draw("a.png")
    records = protect("a.png", "gone.png")
    assert [record.status for record in records] == ["failed", "failed"]
    assert "learns a subject from several pictures" in str(records[1].error)
    assert not Path("a.protected.png").exists()


def test_an_interruption_while_a_set_is_made_leaves_no_file(protect: Runner, draw) -> None:
    draw("a.png")
    draw("b.png", seed=1)

    def interrupt(job, share: float) -> None:
        if share > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        protect("a.png", "b.png", progress=interrupt)
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["a.png", "b.png"]


def command(*arguments: str):
    return CliRunner().invoke(app, [*arguments, "--device", "cpu", "--precision", "float32"])


def test_the_command_protects_a_folder_as_one_subject(
    tiny_diffusion: Path, draw, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw("me/a.png", 40, 48)
    draw("me/b.png", 72, 40, seed=1)
    own = ["--rounds", "2", "--train-steps", "1", "--prior-images", "1", "--steps", "2"]
    result = command("me", "--method", "aspl", "--model", str(tiny_diffusion), *own, "--report", "r.json")
    assert result.exit_code == 0, result.stderr
    assert "2 done, 0 skipped, 0 failed" in result.stdout
    records = json.loads(Path("r.json").read_text())
    assert [(record["status"], record["method"]) for record in records] == [("done", "aspl")] * 2
    assert all(0 < record["linf"] <= 2 for record in records)
    assert (read("me/a.protected.png").height, read("me/b.protected.png").height) == (40, 72)


def test_the_command_refuses_a_single_picture_in_one_line(
    tiny_diffusion: Path, draw, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw("a.png")
    result = command("a.png", "--method", "aspl", "--model", str(tiny_diffusion), "--report", "r.json")
    assert result.exit_code == 2
    assert result.stderr == (
        "protect: ASPL learns a subject from several pictures: give two or more of it together; got a.png\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_reconstructions_say_what_they_are_in_the_list() -> None:
    listed = CliRunner().invoke(app, ["--list"]).stdout.splitlines()
    for name in ("hspace", "hspace-kv"):
        (line,) = [line for line in listed if line.split()[:1] == [name]]
        assert "experimental reconstruction, not the authors'" in line
        assert "reconstruction" in create(name).paper
