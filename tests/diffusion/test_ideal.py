import pytest
import torch

from diffusion.ideal import IdealDenoiser
from diffusion.model import to_clean, to_noise
from diffusion.schedule import NoiseSchedule

SCHEDULES = {"linear": NoiseSchedule.linear(), "flow": NoiseSchedule.rectified_flow(shift=3.0)}


@pytest.fixture
def pictures():
    return torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def naive_posterior_mean(pictures, z_t, alpha, sigma):
    """Bayes' rule written out in float64 for one noisy picture."""
    data = 2 * pictures.double() - 1
    log_likelihood = -(z_t.double() - alpha * data).square().sum((1, 2, 3)) / (2 * sigma**2)
    return (log_likelihood.softmax(0)[:, None, None, None] * data).sum(0)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("t", [0, 100, 500, 998])
def test_denoiser_is_the_posterior_mean(pictures, kind, t):
    schedule = SCHEDULES[kind]
    model = IdealDenoiser(pictures, schedule, prediction="sample")
    z_t = schedule.add_noise(model.encode(pictures[:3]), torch.randn(3, 3, 8, 8), torch.full((3,), t))
    clean = model.predict_clean(z_t, torch.full((3,), t))
    expected = torch.stack([naive_posterior_mean(pictures, one, *schedule.level(t)) for one in z_t])
    torch.testing.assert_close(clean, expected.float(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
@pytest.mark.parametrize("t", [5, 300, 900])
def test_predictions_in_all_terms_are_the_same_statement(pictures, prediction, t):
    schedule = NoiseSchedule.linear()
    reference = IdealDenoiser(pictures, schedule, prediction="sample").double()
    model = IdealDenoiser(pictures, schedule, prediction=prediction).double()
    z_t, t = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.full((2,), t)
    torch.testing.assert_close(model.predict_clean(z_t, t), reference.predict_clean(z_t, t))
    torch.testing.assert_close(model.predict_noise(z_t, t), reference.predict_noise(z_t, t))


def test_flow_terms_are_the_same_statement(pictures):
    schedule = NoiseSchedule.rectified_flow()
    z_t, t = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([200, 999])
    flow = IdealDenoiser(pictures, schedule, prediction="flow").double()
    reference = IdealDenoiser(pictures, schedule, prediction="sample").double()
    torch.testing.assert_close(flow.predict_clean(z_t, t), reference.predict_clean(z_t, t))
    torch.testing.assert_close(flow.predict_noise(z_t, t), reference.predict_noise(z_t, t))


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample", "flow"])
def test_target_translates_back_to_the_picture_and_its_noise(pictures, prediction):
    schedule = NoiseSchedule.rectified_flow() if prediction == "flow" else NoiseSchedule.scaled_linear()
    model = IdealDenoiser(pictures, schedule, prediction=prediction).double()
    z, noise = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    t = torch.tensor([10, 700])
    z_t = schedule.add_noise(z, noise, t)
    output = model.target(z, noise, t)
    torch.testing.assert_close(to_clean(prediction, output, z_t, *schedule.at(t, z_t)), z)
    torch.testing.assert_close(to_noise(prediction, output, z_t, *schedule.at(t, z_t)), noise)


def test_pure_noise_favours_no_picture(pictures):
    model = IdealDenoiser(pictures, NoiseSchedule.rectified_flow())
    weights = model.posterior(10 * torch.randn(2, 3, 8, 8), torch.tensor([999, 999]))
    torch.testing.assert_close(weights, torch.full((2, 10), 0.1), atol=1e-4, rtol=0)


def test_a_lightly_noised_member_is_recognised(pictures):
    model = IdealDenoiser(pictures, NoiseSchedule.linear())
    weights = model.posterior(model.encode(pictures), torch.zeros(10, dtype=torch.long))
    torch.testing.assert_close(weights, torch.eye(10))


def test_an_element_does_not_depend_on_its_batch(pictures):
    model = IdealDenoiser(pictures, NoiseSchedule.linear())
    z_t, t = torch.randn(4, 3, 8, 8), torch.tensor([1, 50, 400, 990])
    alone = torch.cat([model.predict(z_t[i : i + 1], t[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(model.predict(z_t, t), alone)


def test_encode_and_decode_are_inverse_and_clamping_is_optional(pictures):
    model = IdealDenoiser(pictures, NoiseSchedule.linear())
    torch.testing.assert_close(model.decode(model.encode(pictures)), pictures)
    assert model.decode(torch.full((1, 3, 8, 8), 3.0)).max() == 1
    assert model.decode(torch.full((1, 3, 8, 8), 3.0), clamp=False).max() == 2


def test_mistakes_are_named(pictures):
    model = IdealDenoiser(pictures, NoiseSchedule.linear())
    with pytest.raises(ValueError, match=r"pictures of shape \(3, 8, 8\) only; got \(3, 16, 16\)"):
        model.encode(torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match="unknown prediction 'noise'; available: epsilon, v"):
        IdealDenoiser(pictures, NoiseSchedule.linear(), prediction="noise")
