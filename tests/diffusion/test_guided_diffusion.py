"""Guided diffusion's original weights, against a U-Net written here from the paper's description."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from diffusion.guided_diffusion import Heads, Layout, build, layout_of, read_guided_diffusion
from diffusion.known import MissingWeightsError
from diffusion.load import available, load
from diffusion.pixel import PixelDiffusion
from diffusion.schedule import NoiseSchedule


class Residual(nn.Module):
    """Normalise, resample if asked to, convolve; then the timestep; normalise, convolve, add."""

    def __init__(self, source, target, embedding, *, scale_shift, resample=None):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, source), nn.SiLU(), nn.Conv2d(source, target, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, target * (2 if scale_shift else 1)))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, target), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(target, target, 3, padding=1)
        )
        self.skip_connection = nn.Conv2d(source, target, 1) if source != target else nn.Identity()

    def resized(self, x):
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if self.resample == "up" else x

    def forward(self, x, embedding):
        norm, activation, convolution = self.in_layers
        inside = convolution(self.resized(activation(norm(x))))
        told = self.emb_layers(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, 1)
            inside = self.out_layers[0](inside) * (1 + scale) + shift
        else:
            inside = self.out_layers[0](inside + told)
        return self.skip_connection(self.resized(x)) + self.out_layers[1:](inside)


class SelfAttention(nn.Module):
    """One head at a time, over all places; `grouped` says in which order the 3 C channels lie."""

    def __init__(self, channels, heads, *, grouped):
        super().__init__()
        self.heads, self.grouped = heads, grouped
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, embedding):
        channels = x.shape[1]
        width = channels // self.heads
        places = x.flatten(2)
        made = self.qkv(self.norm(places))
        answers = []
        for head in range(self.heads):
            if self.grouped:  # q, k and v of the first head, then of the second, ...
                firsts = [3 * head * width + part * width for part in range(3)]
            else:  # the queries of all heads, then the keys of all, ...
                firsts = [part * channels + head * width for part in range(3)]
            q, k, v = (made[:, first : first + width] for first in firsts)
            scale = 1 / math.sqrt(math.sqrt(width))
            weights = torch.softmax(torch.einsum("bct,bcs->bts", q * scale, k * scale), -1)
            answers.append(torch.einsum("bts,bcs->bct", weights, v))
        return x + self.proj_out(torch.cat(answers, 1)).view_as(x)


class Plain(nn.Module):
    """A convolution between levels."""

    def __init__(self, channels, resample):
        super().__init__()
        name, stride = ("op", 2) if resample == "down" else ("conv", 1)
        setattr(self, name, nn.Conv2d(channels, channels, 3, stride=stride, padding=1))

    def forward(self, x, embedding):
        if hasattr(self, "op"):
            return self.op(x)
        return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))


class First(nn.Conv2d):
    def forward(self, x, embedding):
        return super().forward(x)


@dataclass(frozen=True)
class Setting:
    width: int = 32
    multiples: tuple[float, ...] = (1, 2)
    layers: int = 1
    attention: tuple[bool, ...] = (False, True)
    heads: Heads = Heads(width=16)  # noqa: RUF009
    classes: int = 0
    variance: bool = True
    scale_shift: bool = True
    residual_resampling: bool = True
    in_channels: int = 3

    @property
    def channels(self):
        return tuple(int(multiple * self.width) for multiple in self.multiples)


class Reference(nn.Module):
    def __init__(self, setting: Setting):
        super().__init__()
        self.setting, width, heads = setting, setting.width, setting.heads
        embedding = 4 * width

        def residual(source, target, resample=None):
            return Residual(source, target, embedding, scale_shift=setting.scale_shift, resample=resample)

        def attention(channels):
            return SelfAttention(channels, heads.number or channels // heads.width, grouped=heads.grouped)

        def between(channels, resample):
            if setting.residual_resampling:
                return residual(channels, channels, resample)
            return Plain(channels, resample)

        self.time_embed = nn.Sequential(
            nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        if setting.classes:
            self.label_emb = nn.Embedding(setting.classes, embedding)
        now, skips = setting.channels[0], [setting.channels[0]]
        self.input_blocks = nn.ModuleList([nn.ModuleList([First(setting.in_channels, now, 3, padding=1)])])
        levels = list(zip(setting.channels, setting.attention, strict=True))
        for level, (channels, attends) in enumerate(levels):
            for _ in range(setting.layers):
                block = [residual(now, channels), *([attention(channels)] if attends else [])]
                self.input_blocks.append(nn.ModuleList(block))
                now = channels
                skips.append(now)
            if level < len(levels) - 1:
                self.input_blocks.append(nn.ModuleList([between(now, "down")]))
                skips.append(now)
        self.middle_block = nn.ModuleList([residual(now, now), attention(now), residual(now, now)])
        self.output_blocks = nn.ModuleList()
        for level, (channels, attends) in reversed(list(enumerate(levels))):
            for layer in range(setting.layers + 1):
                block = [residual(now + skips.pop(), channels), *([attention(channels)] if attends else [])]
                now = channels
                if level and layer == setting.layers:
                    block.append(between(now, "up"))
                self.output_blocks.append(nn.ModuleList(block))
        out = 3 * (2 if setting.variance else 1)
        self.out = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(now, out, 3, padding=1))

    def forward(self, x, t, classes=None):
        half = self.setting.width // 2
        angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        # in float32 in the original and here, whatever the weights: at t = 999 its rounding is 1e-5 already
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1).to(x.dtype))
        if classes is not None:
            embedding = embedding + self.label_emb(classes)
        kept = []
        for block in self.input_blocks:
            for layer in block:
                x = layer(x, embedding)
            kept.append(x)
        for layer in self.middle_block:
            x = layer(x, embedding)
        for block in self.output_blocks:
            x = torch.cat([x, kept.pop()], 1)
            for layer in block:
                x = layer(x, embedding)
        return self.out(x)


def reference(setting):
    torch.manual_seed(0)
    network = Reference(setting).eval().requires_grad_(False)
    for norm in network.modules():
        if isinstance(norm, nn.GroupNorm):  # or every norm would be exchangeable
            nn.init.normal_(norm.weight, 1, 0.3)
            nn.init.normal_(norm.bias, 0, 0.3)
        if isinstance(norm, nn.Conv1d):  # attention that matters, with weights far from even
            nn.init.normal_(norm.weight, 0, 1 / math.sqrt(norm.in_channels))
    return network.double()


def saved(network, folder, name="adm.safetensors"):
    save_file(network.state_dict(), folder / name)
    return folder / name


SETTINGS = {
    "as released": Setting(),
    "two blocks, three levels": Setting(multiples=(1, 1, 2), layers=2, attention=(False, True, True)),
    "convolutions between levels": Setting(residual_resampling=False),
    "added timesteps": Setting(scale_shift=False, variance=False),
    "attention in the middle alone": Setting(attention=(False, False), residual_resampling=False),
    "attention everywhere": Setting(attention=(True, True), multiples=(1, 3)),
    "classes": Setting(classes=5),
    "as many heads in each level": Setting(attention=(True, True), heads=Heads(number=4)),
    "heads not grouped": Setting(heads=Heads(width=16, grouped=False)),
    "half as wide at the top": Setting(width=64, multiples=(0.5, 1)),
    "one level": Setting(multiples=(1,), attention=(True,)),
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_converted_weights_say_what_the_original_network_says(tmp_path, setting):
    network = reference(setting)
    model = read_guided_diffusion(saved(network, tmp_path), heads=setting.heads, dtype=torch.float64)
    assert isinstance(model, PixelDiffusion)
    assert (model.prediction, model.name, model.latent_channels) == ("epsilon", "adm", 3)
    assert (model.classes, model.multiple) == (setting.classes, 2 ** (len(setting.channels) - 1))
    z_t, t = torch.randn(3, 3, 8, 12, dtype=torch.float64), torch.tensor([0, 17, 999])
    classes = torch.tensor([4, 0, 2]) if setting.classes else None
    expected = network(z_t, t, classes)
    told = model.condition(["4", "0", "2"]) if setting.classes else None
    found = model.predict(z_t, t, told)
    assert expected.shape[1] == 3 * (1 + setting.variance)
    assert expected[:, :3].std() > 0.1
    torch.testing.assert_close(found, expected[:, :3], rtol=0, atol=1e-9)
    single = read_guided_diffusion(tmp_path / "adm.safetensors", heads=setting.heads)
    assert single.dtype == torch.float32
    torch.testing.assert_close(
        single.predict(z_t.float(), t, told), expected[:, :3].float(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    "wrong", [Heads(width=16, grouped=False), Heads(width=32), Heads(number=1)], ids=repr
)
def test_what_the_file_does_not_say_matters(tmp_path, wrong):
    """The same weights, read with other heads, make another network: the option is no decoration."""
    network = reference(Setting())
    model = read_guided_diffusion(saved(network, tmp_path), heads=wrong, dtype=torch.float64)
    z_t, t = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([17, 500])
    assert (model.predict(z_t, t) - network(z_t, t)[:, :3]).abs().max() > 1e-3


def test_load_recognises_the_file_by_its_keys(tmp_path):
    setting = Setting(width=64, multiples=(1, 2), heads=Heads())
    network = reference(setting)
    path = saved(network, tmp_path, "tiny.safetensors")
    assert available(str(path))
    model = load(str(path), dtype=torch.float64)
    assert isinstance(model, PixelDiffusion)
    assert (model.name, model.comfortable, model.schedule.clip) == ("tiny", 16, 1.0)
    torch.testing.assert_close(model.schedule.alpha, NoiseSchedule.linear().alpha)
    z_t, t = torch.randn(1, 3, 8, 8, dtype=torch.float64), torch.tensor([5])
    torch.testing.assert_close(model.predict(z_t, t), network(z_t, t)[:, :3], rtol=0, atol=1e-9)
    half = load(str(path), dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert (half.predict(z_t, t) - model.predict(z_t, t)).abs().max() < 0.1


RELEASED = {
    "256x256_diffusion_uncond": (
        Setting(256, (1, 1, 2, 2, 4, 4), 2, (False,) * 3 + (True,) * 3, Heads()),
        (256, "linear", 552_814_086),
    ),
    "256x256_diffusion": (
        Setting(256, (1, 1, 2, 2, 4, 4), 2, (False,) * 3 + (True,) * 3, Heads(), classes=1000),
        (256, "linear", 553_838_086),
    ),
    "64x64_diffusion": (
        Setting(192, (1, 2, 3, 4), 3, (False, True, True, True), Heads(grouped=False), classes=1000),
        (64, "cosine", None),
    ),
    "128x128_diffusion": (
        Setting(256, (1, 1, 2, 3, 4), 2, (False, False, True, True, True), Heads(number=4), classes=1000),
        (128, "linear", None),
    ),
    "512x512_diffusion": (
        Setting(256, (0.5, 1, 1, 2, 2, 4, 4), 2, (False,) * 4 + (True,) * 3, Heads(), classes=1000),
        (512, "linear", None),
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_networks_are_read_off_their_names_and_shapes(name, monkeypatch):
    """At full size and without memory: the layout, the settings that go with it, and that everything fits."""
    setting, (side, schedule, size) = RELEASED[name]
    with torch.device("meta"):
        state = Reference(setting).state_dict()
    if size:
        assert sum(value.numel() for value in state.values()) == size
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    layout = layout_of(shapes, Path(name))
    assert layout == Layout(
        width=setting.width,
        channels=setting.channels,
        layers=setting.layers,
        attention=setting.attention,
        in_channels=3,
        out_channels=6,
        classes=setting.classes,
        scale_shift=True,
        residual_resampling=True,
    )
    monkeypatch.setattr("diffusion.guided_diffusion.shapes_of", lambda path: shapes)
    monkeypatch.setattr("diffusion.guided_diffusion.load_file", lambda path: state)
    given = {}

    def recording(layout, state, heads, side, path):
        given.update(heads=heads, side=side)
        return build(layout, state, heads, side, path)

    monkeypatch.setattr("diffusion.guided_diffusion.build", recording)
    model = read_guided_diffusion(f"{name}.safetensors")
    assert given == {"heads": setting.heads, "side": side}
    assert model.comfortable == side
    expected = NoiseSchedule.cosine() if schedule == "cosine" else NoiseSchedule.linear()
    torch.testing.assert_close(model.schedule.alpha, expected.alpha)
    assert sum(weight.numel() for weight in model.unet.parameters()) == sum(v.numel() for v in state.values())


def test_gradients_reach_the_picture_and_no_weight(tmp_path):
    setting = replace(Setting(), heads=Heads(width=32))
    network = reference(setting)
    model = read_guided_diffusion(saved(network, tmp_path), heads=setting.heads, dtype=torch.float64)
    z_t, t = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([20, 700])
    direction, cotangent = torch.randn_like(z_t), torch.randn_like(z_t)
    leaf = z_t.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.predict(leaf, t), leaf, cotangent)
    step = 1e-5
    ahead, behind = (model.predict(z_t + sign * step * direction, t) for sign in (1, -1))
    numeric = ((ahead - behind) * cotangent).sum() / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-5)
    assert not any(weight.requires_grad for weight in model.parameters())


def test_a_pickle_says_in_one_line_how_to_convert_it(tmp_path):
    path = tmp_path / "256x256_diffusion_uncond.pt"
    network = reference(Setting(heads=Heads(width=32)))
    torch.save(network.state_dict(), path)
    with pytest.raises(MissingWeightsError) as refused:
        load(str(path))
    target = path.with_suffix(".safetensors")
    command = f"safetensors.torch.save_file(torch.load('{path}', weights_only=True), '{target}')"
    expected = f"{path} may run code when read and is refused: convert it to safetensors with {command}"
    assert str(refused.value) == expected
    save_file(torch.load(path, weights_only=True), target)
    model = read_guided_diffusion(target, heads=Heads(width=32), dtype=torch.float64)
    z_t, t = torch.randn(1, 3, 8, 8, dtype=torch.float64), torch.tensor([5])
    torch.testing.assert_close(model.predict(z_t, t), network(z_t, t)[:, :3], rtol=0, atol=1e-9)


def test_other_networks_of_that_family_are_named(tmp_path):
    state = reference(Setting()).state_dict()
    classifier = {key: value for key, value in state.items() if not key.startswith(("output_blocks", "out."))}
    save_file(classifier, tmp_path / "classifier.safetensors")
    with pytest.raises(ValueError, match=r"classifier.safetensors has no way up .*: a classifier"):
        load(str(tmp_path / "classifier.safetensors"))
    save_file(reference(Setting(in_channels=6)).state_dict(), tmp_path / "upsampler.safetensors")
    with pytest.raises(ValueError, match="takes 6 channels; expected pictures of 1 or 3, so no upsampler"):
        load(str(tmp_path / "upsampler.safetensors"))
    lost = {key: value for key, value in state.items() if key != "output_blocks.1.0.in_layers.2.bias"}
    save_file(lost, tmp_path / "lost.safetensors")
    expected = r"up_blocks.0.resnets.1.conv1.bias should be \(64,\) and is absent"
    with pytest.raises(ValueError, match=expected):
        read_guided_diffusion(tmp_path / "lost.safetensors", heads=Heads(width=16))
    save_file(state | {"input_blocks.1.2.norm.weight": torch.zeros(4)}, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match=r"input_blocks.1.2.norm.weight should be absent and is \(4,\)"):
        read_guided_diffusion(tmp_path / "more.safetensors", heads=Heads(width=16))
    with pytest.raises(ValueError, match="64 channels do not split into heads of 48 channels; pass heads="):
        read_guided_diffusion(saved(reference(Setting()), tmp_path), heads=Heads(width=48))
    with pytest.raises(MissingWeightsError, match="there is no file"):
        read_guided_diffusion(tmp_path / "nowhere.safetensors")
