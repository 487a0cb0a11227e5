"""Several models as one surrogate: the mean of what each asks for, and which models go together."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from diffusion.known import KNOWN, MissingWeightsError
from diffusion.latent import Autoencoder
from diffusion.model import Condition, DiffusionModel
from diffusion.schedule import NoiseSchedule
from imaging.io import Picture, read
from protect import surrogate
from protect.cli import app
from protect.ensemble import comfortable, common_multiple, repeated_encoders
from protect.methods.mist import Mist
from protect.methods.photoguard import PhotoGuard
from protect.picture import protect_image
from protect.promise import promise
from protect.surrogate import TINY, choose_for

IMAGES = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(2))


class Curved(DiffusionModel):
    """Reads pictures by one strided convolution and a cubic, so that gradients depend on the place."""

    has_denoiser = False

    def __init__(self, seed, *, loudness=1.0, multiple=2, comfortable=64, name="curved"):
        super().__init__(
            NoiseSchedule.linear(),
            prediction="epsilon",
            name=name,
            multiple=multiple,
            latent_channels=4,
            comfortable=comfortable,
        )
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(4, 3, multiple, multiple, generator=generator))
        self.loudness, self.seen = loudness, set()
        self.freeze()

    @property
    def denoiser(self):
        raise AssertionError("nothing here denoises")

    def encode(self, images):
        self.seen.add(tuple(images.shape[-2:]))
        self.check_sides(images)
        return self.loudness * F.conv2d(images, self.weight, stride=self.multiple) ** 3

    def decode(self, z, *, clamp=True):
        raise AssertionError("no method decodes")

    def predict(self, z_t, t, condition=None):
        raise AssertionError("no method denoises")

    def condition(self, prompts):
        return Condition()


class Anywhere:
    """All perturbations, and the gradient itself as the step, so that a step shows the gradient."""

    def steepest(self, gradient):
        return gradient

    def project(self, delta):
        return delta


@dataclass(frozen=True)
class OneGradientStep(PhotoGuard):
    steps: int = 1
    step_size: float = 1e-3
    random_start: bool = False

    @property
    def ball(self):
        return Anywhere()


def test_a_step_follows_the_mean_of_the_members_gradients_each_at_one_magnitude():
    images = 0.25 + IMAGES / 2
    models = [Curved(1), Curved(2, loudness=1e4), Curved(3, multiple=3)]
    found = OneGradientStep().protect(images, models) - images
    expected = torch.zeros_like(images)
    for model in models:
        leaf = images.clone().requires_grad_()
        for norm in model.encode(leaf).flatten(1).norm(dim=1):
            (-norm).backward(retain_graph=True)
        for picture, gradient in enumerate(leaf.grad):
            expected[picture] += gradient / gradient.abs().mean() / len(models)
    torch.testing.assert_close(found, 1e-3 * expected, atol=1e-7, rtol=1e-3)


def test_the_order_of_the_members_is_a_matter_of_rounding():
    models = [Curved(1), Curved(2), Curved(3)]
    there, back = (OneGradientStep(steps=5).protect(IMAGES, order) for order in (models, models[::-1]))
    torch.testing.assert_close(there, back, atol=1e-6, rtol=0)


def test_one_model_alone_and_in_a_list_are_the_same_to_the_bit():
    alone, listed = (
        PhotoGuard(steps=3).protect(IMAGES, given, generator=seeded()) for given in (Curved(1), [Curved(1)])
    )
    assert torch.equal(alone, listed)


def test_both_members_are_met_better_than_by_the_other_alone():
    one, other = Curved(1), Curved(2)
    method = PhotoGuard(steps=40, eps=16 / 255)

    def shrinkage(model, surrogates):
        found = method.protect(IMAGES, surrogates, generator=seeded())
        return (model.encode(found).norm() / model.encode(IMAGES).norm()).item()

    for model, stranger in ((one, other), (other, one)):
        alone, together, missed = (shrinkage(model, given) for given in (model, [one, other], stranger))
        assert alone < together < missed


def seeded():
    return torch.Generator().manual_seed(7)


def test_tiles_fit_the_smallest_member_and_every_multiple():
    models = [Curved(1, multiple=4, comfortable=40), Curved(2, multiple=6, comfortable=64)]
    assert (common_multiple(models), comfortable(models)) == (12, 40)
    picture = Picture((255 * torch.rand(1, 3, 50, 70)).to(torch.uint8))
    protect_image(picture, PhotoGuard(steps=1), models, precision="float32")
    for model in models:
        assert {side % 12 for size in model.seen for side in size} == {0}
        assert max(side for size in model.seen for side in size) == 24  # of whole blocks of JPEG, too


def test_members_that_do_not_go_together_are_refused_in_one_line():
    pixels, other = Curved(1, name="small", comfortable=32), Curved(2, name="large")
    pixels.fixed_size = True
    refusals = {
        "different sizes (small 32 px and large 64 px)": [pixels, other],
        "a model is given twice": [other, other],
        "got none": [],
    }
    for message, models in refusals.items():
        with pytest.raises(ValueError, match=re.escape(message)) as refusal:
            PhotoGuard().protect(IMAGES, models)
        assert "\n" not in str(refusal.value)


def test_every_member_needs_what_the_method_needs(world):
    with pytest.raises(ValueError, match="bare is an autoencoder alone and Mist needs a denoiser"):
        Mist().protect(torch.zeros(1, 3, 64, 64), [world, Curved(2, name="bare")])


def test_a_method_with_a_loop_of_its_own_takes_one_model():
    class Training(PhotoGuard):
        def protect(self, images, model, **options):
            self.surrogates(model)
            return images

    assert Training().protect(IMAGES, Curved(1)) is IMAGES
    with pytest.raises(ValueError, match="Training takes one model, not 2 together"):
        Training().protect(IMAGES, [Curved(1), Curved(2)])


@pytest.fixture(scope="session")
def second_autoencoder(tiny_autoencoder: Path, tmp_path_factory) -> Path:
    """Another random distilled autoencoder, of sixteen channels."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("second") / "other"
    config = AutoencoderTiny.load_config(tiny_autoencoder)
    AutoencoderTiny.from_config({**config, "latent_channels": 16}).save_pretrained(folder)
    return folder


def test_members_with_one_encoder_are_told_of(tiny_autoencoder: Path, second_autoencoder: Path):
    from diffusion.load import load

    one, same, other = (load(str(path)) for path in (tiny_autoencoder, tiny_autoencoder, second_autoencoder))
    same.name = "again"
    assert isinstance(one, Autoencoder)
    assert repeated_encoders([one, other, same]) == [
        "again has the encoder of vae: it adds at most its denoiser"
    ]
    assert repeated_encoders([one, other, Curved(1)]) == []


@pytest.fixture
def protect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the command in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    quick = ["a.png", "--method", "photoguard", "--steps", "2", "--device", "cpu", "--precision", "float32"]

    def run(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [*quick, *arguments])
        return result.exit_code, result.stdout, result.stderr

    return run


def test_the_command_takes_several_models_and_names_them_all(
    protect, draw, tiny_autoencoder: Path, second_autoencoder: Path
):
    draw("a.png")
    both = f"{tiny_autoencoder},{second_autoencoder}"
    code, out, err = protect("--model", both, "--report", "r.json", "--sheet", "s.png")
    assert (code, err) == (0, "")
    assert "model: vae+other. Against editing. With these models together: what 'vae' and models" in out
    assert "what 'other' and models" in out
    (record,) = json.loads(Path("r.json").read_text())
    assert (record["model"], record["status"]) == ("vae+other", "done")
    assert read("s.png").height > 48
    alone = read("a.protected.png").integers
    assert protect("--model", both)[1].count("1 skipped") == 1, "the mark knows every member"
    assert protect("--model", str(tiny_autoencoder))[0] == 1, "another model is another result"
    assert protect("--model", str(tiny_autoencoder), "--overwrite")[0] == 0
    assert not torch.equal(read("a.protected.png").integers, alone)


def test_a_pair_that_shares_its_encoder_is_a_note_and_no_error(protect, draw, tiny_autoencoder: Path):
    draw("a.png")
    shutil.copytree(tiny_autoencoder, "twin")
    weights = Path("twin/diffusion_pytorch_model.safetensors")
    from safetensors.torch import load_file, save_file

    state = load_file(weights)
    state = {key: value * (2 if key.startswith("decoder") else 1) for key, value in state.items()}
    save_file(state, weights, metadata={"format": "pt"})
    code, out, err = protect("--model", f"{tiny_autoencoder},twin")
    assert (code, err) == (0, "")
    assert "note: twin has the encoder of vae: it adds at most its denoiser" in out


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("{one},{one}", "is named twice; name each member once"),
        ("sd15, sd15", "the model 'sd15' is named twice"),
        ("tiny,taef1", "the model 'taef1' is named twice"),
        ("{one},", "a list of models has a name between any two commas"),
        ("auto,{one}", "'auto' chooses by itself"),
        ("{one},taesdd", "unknown model 'taesdd'; did you mean 'taesd"),
        ("{one},cifar10", "these models see pictures of different sizes"),
        ("tiny", "run: hf download madebyollin/taesd "),
    ],
)
def test_a_mistake_in_the_list_is_one_line(protect, draw, tiny_autoencoder: Path, names: str, message: str):
    draw("a.png")
    code, out, err = protect("--offline", "--model", names.format(one=tiny_autoencoder))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("a.protected.png").exists()


def test_names_come_as_a_list_too_and_a_folder_may_hold_a_comma(
    tiny_autoencoder: Path, second_autoencoder: Path, tmp_path: Path
):
    comma = tmp_path / "a,b"
    shutil.copytree(tiny_autoencoder, comma)
    assert choose_for(PhotoGuard(), comma).label == "a,b"
    chosen = choose_for(PhotoGuard(), [comma, second_autoencoder])
    assert chosen.label == "a,b+other"
    assert chosen.identity == "+".join(member.identity for member in chosen.members)
    image = torch.rand(1, 3, 16, 16)
    found = protect_image(image, "photoguard", [str(comma), str(second_autoencoder)], steps=1, device="cpu")
    assert 0 < (found - image).abs().max() <= 8.5 / 255


def test_a_pair_of_halves_goes_by_what_their_names_share_and_its_identity_by_its_encoder(tmp_path: Path):
    encoder = tmp_path / "small_encoder.safetensors"
    encoder.write_bytes(b"one")
    (tmp_path / "small_decoder.safetensors").write_bytes(b"any")
    before = choose_for(PhotoGuard(), tmp_path / "small")
    assert before.label == "small"
    assert "what 'small' and" in promise("photoguard", str(tmp_path / "small")).against
    identity = before.identity
    encoder.write_bytes(b"two")
    assert before.identity != identity


def test_tiny_is_four_known_autoencoders_of_different_families():
    assert choose_for(PhotoGuard(), "tiny").label == "taesd+taesdxl+taesd3+taef1"
    assert {KNOWN[name].kind for name in TINY} == {"autoencoder"}
    said = promise("photoguard", *TINY).against
    assert all(family in said for family in ("1.x and 2.x", "XL", "3:", "FLUX.1"))


class Cache:
    """What is on this computer and on the hub, as far as `choose_for` asks."""

    def __init__(self, monkeypatch, *, full="builtin", here=(), hub=True, broken=False):
        self.here, self.hub, self.broken, self.asked = set(here), hub, broken, 0
        monkeypatch.setattr("diffusion.choice.resolve_auto", lambda inpainting=False: full)
        monkeypatch.setattr(surrogate, "available", lambda name, denoiser: name in self.here)
        monkeypatch.setattr(surrogate, "reachable", self.reachable)
        monkeypatch.setattr(surrogate, "fetch", self.fetch)

    def reachable(self):
        self.asked += 1
        return self.hub

    def fetch(self, name, denoiser):
        if self.broken:
            raise MissingWeightsError("no")
        self.here.add(name)


@pytest.mark.parametrize(
    ("found", "label", "reason", "asked"),
    [
        ({"full": "sd15", "here": TINY}, "sd15", "the first full model", 0),
        ({"here": TINY, "hub": False}, "taesd+taesdxl+taesd3+taef1", "these stand-ins", 0),
        ({"here": TINY[:2]}, "taesd+taesdxl+taesd3+taef1", "were fetched", 1),
        ({"hub": False}, "builtin", "could not be fetched", 1),
        ({"broken": True}, "builtin", "could not be fetched", 1),
    ],
)
def test_auto_takes_a_full_model_else_the_tiny_ones_else_the_built_in_one_and_says_why(
    monkeypatch, found, label, reason, asked
):
    cache = Cache(monkeypatch, **found)
    chosen = choose_for(PhotoGuard(), "auto")
    assert (chosen.label, cache.asked) == (label, asked)
    assert reason in chosen.reason


def test_auto_keeps_off_the_network_when_told_to(monkeypatch):
    cache = Cache(monkeypatch)
    assert choose_for(PhotoGuard(), "auto", offline=True).label == "builtin"
    assert cache.asked == 0


def test_auto_gives_no_bare_autoencoder_to_a_method_that_denoises(monkeypatch):
    cache = Cache(monkeypatch, here=TINY)
    assert choose_for(Mist(), "auto").label == "builtin"
    assert (choose_for(PhotoGuard(), "builtin").reason, cache.asked) == ("", 0)


def test_the_command_says_which_model_auto_took_and_why(protect, draw, monkeypatch):
    Cache(monkeypatch, hub=False)
    draw("a.png")
    code, out, _ = protect("--model", "auto")
    assert code == 0
    assert "model: builtin (no full model is on this computer, and the stand-ins of --model tiny could" in out


def test_the_hub_is_not_asked_under_its_own_offline_switch(monkeypatch):
    from huggingface_hub import constants

    from diffusion import cache

    def never(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(cache, "urlopen", never)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not cache.reachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for error in (TimeoutError("slow"), ConnectionRefusedError("gone")):

        def failing(*_, timeout, error=error):
            assert timeout <= 3
            raise error

        monkeypatch.setattr(cache, "urlopen", failing)
        assert not cache.reachable()
