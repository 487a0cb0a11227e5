"""Every method against a linear world where its gradient is known, and against its own claim on a network."""

import pytest
import torch
from torch import Tensor, nn

from attacks.objectives import value_and_gradient
from diffusion.losses import denoising_loss
from diffusion.model import Condition, DiffusionModel
from diffusion.schedule import NoiseSchedule
from protect.collective import CollectiveMethod
from protect.methods import METHODS, UnknownMethodError, create
from protect.methods.atkpdm import AtkPDM
from protect.methods.draws import draw_noise

GENERATOR = torch.Generator().manual_seed(5)


class _Middle(nn.Module):
    """One matrix, called as an attention's map to its keys."""

    def __init__(self, matrix):
        super().__init__()
        self.to_k = nn.Linear(*matrix.shape, bias=False, dtype=matrix.dtype)
        self.to_k.weight.data = matrix

    def forward(self, z):
        return self.to_k(z)


def _network(matrix):
    """That matrix as the middle of a U-Net that has nothing else."""
    network = nn.Module()
    network.mid_block = nn.Module()
    network.mid_block.resnets = nn.ModuleList([_Middle(matrix)])
    network.up_blocks = nn.ModuleList([nn.Module()])
    network.up_blocks[0].resnets = nn.ModuleList([nn.Identity()])
    return network


class LinearWorld(DiffusionModel):
    """`E(x) = s W x` and `predict(z_t) = A z_t`, so that every gradient has a closed form."""

    fixed_size = True

    def __init__(self, *, prediction="epsilon", scale=0.3, jacobian=None):
        super().__init__(
            NoiseSchedule.scaled_linear(),
            prediction=prediction,
            name="linear",
            multiple=2,
            latent_channels=2,
            comfortable=4,
        )
        self.scale = scale
        encoder = torch.randn(8, 48, generator=GENERATOR, dtype=torch.float64)
        denoiser = (
            torch.randn(8, 8, generator=GENERATOR, dtype=torch.float64) if jacobian is None else jacobian
        )
        self.W, self.network = nn.Parameter(encoder), _network(denoiser)
        self.calls = {"encode": 0, "predict": 0}
        self.freeze()

    @property
    def denoiser(self) -> nn.Module:
        return self.network

    @property
    def A(self) -> Tensor:
        return self.network.mid_block.resnets[0].to_k.weight

    def encode(self, images: Tensor) -> Tensor:
        self.calls["encode"] += 1
        return (self.scale * images.double().flatten(1) @ self.W.T).view(-1, 2, 2, 2)

    def decode(self, z, *, clamp=True):
        raise AssertionError("no method decodes")

    def predict(self, z_t, t, condition=None):
        self.calls["predict"] += 1
        return self.network.mid_block.resnets[0](z_t.flatten(1)).view_as(z_t)

    def condition(self, prompts) -> Condition:
        return Condition()

    def to_pixels(self, gradient: Tensor) -> Tensor:
        """The transpose of the encoder's Jacobian applied to a latent gradient."""
        return (self.scale * gradient.flatten(1) @ self.W).view(-1, 3, 4, 4)


IMAGES = torch.rand(2, 3, 4, 4, generator=GENERATOR, dtype=torch.float64)
TARGET = torch.rand(1, 3, 4, 4, generator=GENERATOR, dtype=torch.float64)


ALONE = [name for name in METHODS if not isinstance(create(name), CollectiveMethod)]
"""Those that take pictures one by one, and not several of a subject together."""

KEPT = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
KEPT[..., :2] = 1


@pytest.fixture
def protect(inpainting_world, small_prior):
    """Protect pictures in the world that a method needs, linear where it can be, with a mask if it needs
    one."""
    linear, inpainting, pixels = LinearWorld(), inpainting_world(), small_prior(4, ("picture",))

    def protect(method, images, mask=None):
        mask = KEPT if method.needs_mask else mask
        world = inpainting if method.needs_inpainting else linear
        world = pixels if isinstance(method, AtkPDM) else world
        return method.protect(images, world, mask=mask, generator=seeded())

    return protect


def seeded():
    return torch.Generator().manual_seed(11)


def gradient_of(name, world, **settings):
    """The method's pixel gradient at `IMAGES` in its first step, beside the draw that it made."""
    method = create(name, **settings)
    objective = method.objective(world, IMAGES, target=TARGET, mask=None, generator=seeded())
    losses, gradient = value_and_gradient(objective, IMAGES)
    t, noise = draw_noise(world, world.encode(IMAGES), seeded())
    z = world.encode(IMAGES).detach()
    alpha, sigma = world.schedule.at(t, z)
    z_t = alpha * z + sigma * noise
    residual = (z_t.flatten(1) @ world.A.T).view_as(z) - noise
    return losses, gradient, alpha, z, residual


@pytest.mark.parametrize(("name", "sign"), [("advdm", 1), ("advdm-minus", -1)])
def test_advdm_gradient_is_the_closed_form(name, sign):
    world = LinearWorld()
    losses, gradient, alpha, z, residual = gradient_of(name, world)
    entries = z[0].numel()
    expected = sign * 2 * alpha / entries * (residual.flatten(1) @ world.A).view_as(z)
    torch.testing.assert_close(gradient, world.to_pixels(expected))
    torch.testing.assert_close(losses, sign * residual.square().flatten(1).mean(1))


@pytest.mark.parametrize(("name", "sign"), [("sds-plus", 1), ("sds-minus", -1)])
def test_sds_gradient_is_the_encoder_transposed_on_the_residual(name, sign):
    world = LinearWorld()
    _, gradient, _, _, residual = gradient_of(name, world)
    torch.testing.assert_close(gradient, sign * world.to_pixels(residual))


@pytest.mark.parametrize(("name", "sign"), [("sdst-plus", 1), ("sdst-minus", -1)])
def test_sdst_adds_the_pull_to_the_target_on_one_encoding(name, sign):
    world = LinearWorld()
    _, gradient, _, z, residual = gradient_of(name, world, score_weight=3.0)
    expected = sign * 3 * residual - 2 * (z - world.encode(TARGET))
    torch.testing.assert_close(gradient, world.to_pixels(expected))


def test_mist_textural_gradient_points_to_the_target():
    world = LinearWorld()
    losses, gradient, _, z, _ = gradient_of("mist-textural", world)
    offset = z - world.encode(TARGET)
    torch.testing.assert_close(gradient, -2 / z[0].numel() * world.to_pixels(offset))
    torch.testing.assert_close(losses, -offset.square().flatten(1).mean(1))


def test_mist_fused_has_the_weights_of_the_released_code():
    # There: minimise sum ||z - z_T||^2 - 10^4 mean (residual)^2 over the 16384 entries of a 512 px picture.
    world = LinearWorld()
    _, gradient, alpha, z, residual = gradient_of("mist", world)
    entries = z[0].numel()
    semantic = 2 * alpha / entries * (residual.flatten(1) @ world.A).view_as(z)
    textural = 2 / entries * (z - world.encode(TARGET))
    torch.testing.assert_close(gradient, world.to_pixels(1e4 / 16384 * semantic - textural))


def test_mist_semantic_follows_advdm():
    world = LinearWorld()
    _, mist, *_ = gradient_of("mist-semantic", world)
    _, advdm, *_ = gradient_of("advdm", world)
    torch.testing.assert_close(mist.sign(), advdm.sign())


def test_photoguard_gradient_is_that_of_the_norm():
    world = LinearWorld()
    _, gradient, _, z, _ = gradient_of("photoguard", world)
    torch.testing.assert_close(gradient, -world.to_pixels(z / z.flatten(1).norm(dim=1).view(-1, 1, 1, 1)))


@pytest.mark.parametrize(("name", "weight"), [("ace", 0), ("ace-plus", 100)])
def test_ace_gradient_leads_the_predicted_noise_and_the_latent_to_the_target(name, weight):
    world = LinearWorld()
    losses, gradient, alpha, z, residual = gradient_of(name, world)
    _, noise = draw_noise(world, world.encode(IMAGES), seeded())
    error, offset = residual + noise - world.encode(TARGET), z - world.encode(TARGET)
    entries = z[0].numel()
    expected = 2 * alpha / entries * (error.flatten(1) @ world.A).view_as(z) + 2 * weight / entries * offset
    torch.testing.assert_close(gradient, -world.to_pixels(expected))
    value = error.square().flatten(1).mean(1) + weight * offset.square().flatten(1).mean(1)
    torch.testing.assert_close(losses, -value)


def test_encoder_shift_ascends_the_relative_distance_from_the_pictures_own_latent():
    world = LinearWorld()
    method = create("encoder-shift")
    objective = method.objective(world, IMAGES, target=TARGET, mask=None, generator=seeded())
    perturbed = IMAGES + 0.01 * torch.rand(IMAGES.shape, generator=seeded(), dtype=torch.float64)
    losses, gradient = value_and_gradient(objective, perturbed)
    offset, length = (
        world.encode(perturbed) - world.encode(IMAGES),
        world.encode(IMAGES).flatten(1).norm(dim=1),
    )
    distance = offset.flatten(1).norm(dim=1)
    torch.testing.assert_close(losses, distance / length)
    expected = world.to_pixels(offset / (distance * length).view(-1, 1, 1, 1))
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample", "flow"])
def test_ace_pulls_the_noise_whatever_the_model_says(prediction):
    world = LinearWorld(prediction=prediction)
    losses, gradient, *_ = gradient_of("ace", world)
    t, noise = draw_noise(world, world.encode(IMAGES), seeded())
    alpha, sigma = world.schedule.at(t, noise)

    def whole(images):
        z_t = alpha * world.encode(images) + sigma * noise
        said = (z_t.flatten(1) @ world.A.T).view_as(z_t)
        found = {
            "epsilon": said,
            "v": alpha * said + sigma * z_t,
            "sample": (z_t - alpha * said) / sigma,
            "flow": z_t + alpha * said,
        }[prediction]
        return -(found - world.encode(TARGET)).square().flatten(1).mean(1)

    expected = value_and_gradient(whole, IMAGES)
    torch.testing.assert_close(losses, expected[0])
    torch.testing.assert_close(gradient, expected[1])


def test_hspace_gradient_leaves_the_middle_of_the_original():
    world, near = LinearWorld(), IMAGES + 0.01 * TARGET
    objective = create("hspace").objective(world, IMAGES, target=TARGET, mask=None, generator=seeded())
    losses, gradient = value_and_gradient(objective, near)
    t, _ = draw_noise(world, world.encode(IMAGES), seeded())
    z = world.encode(near) - world.encode(IMAGES)
    alpha = world.schedule.at(t, z)[0]
    moved = alpha * (z.flatten(1) @ world.A.T).view_as(z)
    expected = 2 * alpha / z[0].numel() * (moved.flatten(1) @ world.A).view_as(z)
    torch.testing.assert_close(gradient, world.to_pixels(expected))
    torch.testing.assert_close(losses, moved.square().flatten(1).mean(1))


@pytest.mark.parametrize("name", ["hspace-kv", "fsmg", "aspl"])
def test_methods_that_train_ascend_the_denoising_loss_of_what_they_train(name):
    world = LinearWorld()
    _, gradient, *_ = gradient_of(name, world)
    _, advdm, *_ = gradient_of("advdm", world)
    torch.testing.assert_close(gradient, advdm)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample", "flow"])
@pytest.mark.parametrize("name", ["advdm", "mist"])
def test_split_chain_rule_equals_one_graph_for_every_parametrisation(name, prediction):
    world = LinearWorld(prediction=prediction)
    method = create(name)
    _, split = value_and_gradient(
        method.objective(world, IMAGES, target=TARGET, mask=None, generator=seeded()), IMAGES
    )
    t, noise = draw_noise(world, world.encode(IMAGES), seeded())

    def whole(images):
        z = world.encode(images)
        loss = denoising_loss(world, z, noise, t)
        if name == "advdm":
            return loss
        offset = z - world.encode(TARGET)
        return method.semantic_weight * loss - offset.square().flatten(1).mean(1)

    torch.testing.assert_close(split, value_and_gradient(whole, IMAGES)[1])


@pytest.mark.parametrize(("factor", "twin"), [(0.7, "sds-plus"), (-0.7, "sds-minus")])
def test_advdm_and_sds_take_the_same_path_when_the_denoiser_is_a_multiple_of_the_identity(factor, twin):
    world = LinearWorld(jacobian=factor * torch.eye(8, dtype=torch.float64))
    settings = {"eps": 32 / 255, "step_size": 4 / 255, "steps": 8}
    # Both without a random start: the paths are equal only from equal points.
    paths = []
    for name in ("advdm", twin):
        method = create(name, random_start=False, **settings)
        paths.append(method.protect(IMAGES, world, target=TARGET, generator=seeded()))
    torch.testing.assert_close(paths[0], paths[1])


@pytest.mark.parametrize(
    ("name", "encode", "predict"),
    [
        ("photoguard", 1, 0),
        ("mist-textural", 1, 0),
        ("encoder-shift", 2, 0),
        ("sds-minus", 1, 1),
        ("sdst-minus", 1, 1),
        ("advdm", 2, 1),
        ("mist", 2, 1),
        ("ace", 2, 1),
        ("ace-plus", 2, 1),
        ("fsmg", 2, 1),
        ("hspace", 2, 2),
        ("hspace-kv", 2, 1),
    ],
)
def test_a_step_runs_no_network_more_often_than_it_must(name, encode, predict):
    """The split chain rule encodes once without and once with a graph; the target is encoded once in all."""
    world = LinearWorld()
    objective = create(name).objective(world, IMAGES, target=TARGET, mask=None, generator=seeded())
    world.calls.update(encode=0, predict=0)
    for _ in range(3):
        value_and_gradient(objective, IMAGES)
    assert world.calls == {"encode": 3 * encode, "predict": 3 * predict}


@pytest.mark.parametrize("name", METHODS)
def test_protection_stays_in_the_ball_and_off_the_mask(protect, name):
    found = protect(create(name, steps=5, eps=4 / 255), IMAGES, KEPT)
    assert (found - IMAGES).abs().max() <= 4 / 255 + 1e-9
    assert torch.equal(found[..., 2:], IMAGES[..., 2:])
    assert (found[..., :2] != IMAGES[..., :2]).any()
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("name", ALONE)
def test_a_batch_equals_its_pictures_one_by_one(protect, name):
    method = create(name, steps=4)
    alone = torch.cat([protect(method, IMAGES[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(protect(method, IMAGES), alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_picture(protect, name):
    runs = [protect(create(name, steps=3), IMAGES) for _ in range(2)]
    assert torch.equal(*runs)


def test_sizes_that_the_model_cannot_take_are_padded_and_cropped():
    class Odd(LinearWorld):
        def encode(self, images):
            assert images.shape[-2:] == (4, 4)
            return super().encode(images)

    images = IMAGES[..., :3, :4]
    found = create("sds-minus", steps=2).protect(images, Odd(), generator=seeded())
    assert found.shape == images.shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0}, "eps must be above 0 and at most 64"),
        ({"eps": -1 / 255}, "got -1"),
        ({"eps": 65 / 255}, "got 65"),
        ({"eps": float("nan")}, "eps must be above 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"step_size": 0.0}, "step size must be above 0"),
    ],
)
@pytest.mark.parametrize("name", METHODS)
def test_settings_out_of_range_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        create(name, **settings)


def test_an_unknown_method_names_its_neighbour():
    with pytest.raises(UnknownMethodError, match="unknown method 'mits'; did you mean 'mist'"):
        create("mits")


def test_mist_refuses_to_do_nothing():
    with pytest.raises(ValueError, match="not both 0"):
        create("mist", textural_weight=0.0, semantic_weight=0.0)


def test_a_method_that_needs_a_denoiser_says_so():
    world = LinearWorld()
    world.has_denoiser = False
    create("mist-textural", steps=1).protect(IMAGES, world)
    with pytest.raises(ValueError, match="linear is an autoencoder alone and AdvDM needs a denoiser"):
        create("advdm", steps=1).protect(IMAGES, world)
