"""Every sampler compared, step by step, with the diffusers scheduler of the same method."""

import diffusers
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline

from diffusion.folder import read_folder
from diffusion.ideal import IdealDenoiser
from diffusion.samplers import ddim, ddim_invert, ddpm, dpm_solver_pp_2m, edit, euler, inpaint
from diffusion.schedule import NoiseSchedule

# diffusers hands tensors to numpy 2 in a deprecated way
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

SD15 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
NAMES = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture
def pictures():
    return torch.rand(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def ideal(pictures, scheduler, prediction):
    return IdealDenoiser(pictures, NoiseSchedule.from_diffusers(scheduler), prediction=prediction).double()


def start(batch=2):
    return torch.randn(batch, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def at(t, batch=2):
    return torch.full((batch,), int(t))


class Recorder:
    """Keeps what a sampler shows its callback."""

    def __init__(self):
        self.steps = []

    def __call__(self, number, z_t):
        assert number == len(self.steps)
        self.steps.append(z_t.clone())


def assert_same_walk(recorder, expected):
    assert len(recorder.steps) == len(expected)
    for number, (measured, reference) in enumerate(zip(recorder.steps, expected, strict=True)):
        torch.testing.assert_close(measured, reference, **TOLERANCE, msg=lambda m, n=number: f"step {n}: {m}")


@pytest.mark.parametrize("prediction", NAMES)
@pytest.mark.parametrize(
    "options", [{}, {"clip_sample": True, "clip_sample_range": 0.8}], ids=["plain", "clip"]
)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_takes_the_steps_of_diffusers(pictures, prediction, options, eta):
    config = {"clip_sample": False, "set_alpha_to_one": False, **SD15, **options}
    scheduler = diffusers.DDIMScheduler(**config, prediction_type=NAMES[prediction])
    model, recorder, z_t = ideal(pictures, scheduler, prediction), Recorder(), start()
    scheduler.set_timesteps(20)
    generator = torch.Generator().manual_seed(3)
    ddim(model, z_t, timesteps=model.schedule.timesteps(20), eta=eta, generator=generator, callback=recorder)

    expected, generator = [z_t], torch.Generator().manual_seed(3)
    for t in scheduler.timesteps:
        output = model.predict(expected[-1], at(t))
        expected.append(scheduler.step(output, t, expected[-1], eta=eta, generator=generator).prev_sample)
    assert_same_walk(recorder, expected[1:])


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_ddim_inversion_takes_the_steps_of_diffusers(pictures, prediction):
    scheduler = diffusers.DDIMInverseScheduler(
        **SD15, clip_sample=False, set_alpha_to_one=False, prediction_type=NAMES[prediction]
    )
    model, recorder = ideal(pictures, scheduler, prediction), Recorder()
    z = model.encode(pictures[:2].double())
    scheduler.set_timesteps(20)
    ddim_invert(model, z, timesteps=model.schedule.timesteps(20), callback=recorder)

    expected = [z]
    for t in scheduler.timesteps:
        output = model.predict(expected[-1], at(t))
        expected.append(scheduler.step(output, t, expected[-1]).prev_sample)
    assert_same_walk(recorder, expected[1:])


@pytest.mark.parametrize("prediction", NAMES)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [10, 1000])
def test_ddpm_takes_the_steps_of_diffusers(pictures, prediction, clip, steps):
    scheduler = diffusers.DDPMScheduler(prediction_type=NAMES[prediction], clip_sample=clip)
    model, recorder, z_t = ideal(pictures, scheduler, prediction), Recorder(), start()
    scheduler.set_timesteps(steps)
    timesteps = model.schedule.timesteps(steps)[-20:]
    ddpm(model, z_t, timesteps=timesteps, generator=torch.Generator().manual_seed(3), callback=recorder)

    expected, generator = [z_t], torch.Generator().manual_seed(3)
    for t in scheduler.timesteps[-20:]:
        output = model.predict(expected[-1], at(t))
        expected.append(scheduler.step(output, t, expected[-1], generator=generator).prev_sample)
    assert_same_walk(recorder, expected[1:])


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_euler_takes_the_steps_of_diffusers(pictures, prediction):
    scheduler = diffusers.EulerDiscreteScheduler(
        **SD15, timestep_spacing="leading", prediction_type=NAMES[prediction]
    )
    model, recorder, z_t = ideal(pictures, scheduler, prediction), Recorder(), start()
    scheduler.set_timesteps(20)
    timesteps = model.schedule.timesteps(20)
    euler(model, z_t, timesteps=timesteps, callback=recorder)

    # diffusers walks with z_t / alpha
    sample, expected = z_t / model.schedule.level(timesteps[0])[0], []
    for t, end in zip(scheduler.timesteps, [*timesteps[1:], None], strict=True):
        output = model.predict(scheduler.scale_model_input(sample, t), at(t))
        sample = scheduler.step(output, t, sample).prev_sample
        expected.append(sample * (1.0 if end is None else model.schedule.level(end)[0]))
    assert_same_walk(recorder, expected)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("sampler", [euler, ddim])
def test_euler_and_ddim_take_the_steps_of_flow_matching(pictures, shift, sampler):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    model, recorder, z_t = ideal(pictures, scheduler, "flow"), Recorder(), start()
    timesteps = model.schedule.timesteps(10)
    sampler(model, z_t, timesteps=timesteps, callback=recorder)

    scheduler.set_timesteps(sigmas=[(t + 1) / 1000 for t in timesteps])
    expected = [z_t]
    for t, clock in zip(timesteps, scheduler.timesteps, strict=True):
        output = model.predict(expected[-1], at(t))
        expected.append(scheduler.step(output, clock, expected[-1]).prev_sample)
    assert_same_walk(recorder, expected[1:])


@pytest.mark.parametrize("prediction", NAMES)
@pytest.mark.parametrize("steps", [2, 8, 20])
def test_dpm_solver_takes_the_steps_of_diffusers(pictures, prediction, steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **SD15,
        timestep_spacing="leading",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        prediction_type=NAMES[prediction],
    )
    model, recorder, z_t = ideal(pictures, scheduler, prediction), Recorder(), start()
    scheduler.set_timesteps(steps)
    dpm_solver_pp_2m(model, z_t, timesteps=scheduler.timesteps.tolist(), callback=recorder)

    expected = [z_t]
    for t in scheduler.timesteps:
        output = model.predict(expected[-1], at(t))
        expected.append(scheduler.step(output, t, expected[-1]).prev_sample)
    assert_same_walk(recorder, expected[1:])


def test_dpm_solver_starts_from_the_pure_noise_of_a_flow(pictures):
    model = IdealDenoiser(pictures, NoiseSchedule.rectified_flow(), prediction="flow").double()
    z = dpm_solver_pp_2m(model, start(), timesteps=model.schedule.timesteps(20))
    distance = torch.cdist(z.flatten(1), model.pictures.flatten(1)).min(dim=1).values
    assert distance.max() < 1e-3


@pytest.mark.parametrize("sampler", [ddim, ddpm, euler, dpm_solver_pp_2m])
def test_every_sampler_reaches_a_picture_of_the_data(pictures, sampler):
    model = IdealDenoiser(pictures, NoiseSchedule.linear()).double()
    z = sampler(model, start(), timesteps=model.schedule.timesteps(50))
    distance = torch.cdist(z.flatten(1), model.pictures.flatten(1)).min(dim=1).values
    assert distance.max() < 0.02


def test_inversion_and_ddim_return_to_the_picture(pictures):
    model = IdealDenoiser(pictures, NoiseSchedule.linear()).double()
    z, timesteps = model.encode(pictures[:3].double()), model.schedule.timesteps(50)
    noise = ddim_invert(model, z, timesteps=timesteps)
    torch.testing.assert_close(ddim(model, noise, timesteps=timesteps), z, atol=1e-3, rtol=0)


def test_guidance_moves_away_from_the_unconditional_prediction(pipeline):
    model = read_folder(pipeline.folder("sd1"), name="sd1", dtype=torch.float64)
    condition, z_t = model.condition(["a cat"]), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    options = {"timesteps": [500, 200], "guidance": 7.5}
    guided = euler(model, z_t, condition, **options)
    torch.testing.assert_close(
        guided, euler(model, z_t, condition, unconditional=model.condition([""]), **options)
    )

    for t, end in [(500, 200), (200, None)]:
        empty, told = model.predict(z_t, at(t)), model.predict(z_t, at(t), condition)
        noise = empty + 7.5 * (told - empty)
        alpha, sigma = model.schedule.level(t)
        alpha_to, sigma_to = (1.0, 0.0) if end is None else model.schedule.level(end)
        z_t = alpha_to * (z_t - sigma * noise) / alpha + sigma_to * noise
    torch.testing.assert_close(guided, z_t)


def generators(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.parametrize("sampler", [ddim, ddpm])
def test_with_a_generator_each_an_element_does_not_depend_on_its_batch(pictures, sampler):
    model = IdealDenoiser(pictures, NoiseSchedule.linear()).double()
    z_t, options = start(3), {"eta": 1.0} if sampler is ddim else {}
    timesteps = model.schedule.timesteps(10)
    together = sampler(model, z_t, timesteps=timesteps, generator=generators(3), **options)
    alone = sampler(model, z_t[2:], timesteps=timesteps, generator=generators(3)[2:], **options)
    torch.testing.assert_close(together[2:], alone)


def test_gradients_flow_through_a_sampler(pictures):
    model = IdealDenoiser(pictures, NoiseSchedule.linear()).double()
    z_t = start(1)

    def walk(z):
        return ddim(model, z, timesteps=[600, 300])

    assert torch.autograd.gradcheck(walk, z_t[..., :6, :6].requires_grad_(), eps=1e-6, atol=1e-4)


# Editing and inpainting


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def noise_like_the_pipelines(seed=0):
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_edit_equals_the_img2img_pipeline(pipeline, images, strength, guidance):
    pipe = StableDiffusionImg2ImgPipeline(**pipeline("distilled").components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        ["a cat", "a dog"],
        image=images,
        strength=strength,
        num_inference_steps=10,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    model = read_folder(pipeline.folder("distilled"), name="distilled")
    measured = edit(
        model,
        images,
        model.condition(["a cat", "a dog"]),
        strength=strength,
        steps=10,
        generator=torch.Generator().manual_seed(0),
        guidance=guidance,
    )
    torch.testing.assert_close(measured, expected, **TOLERANCE)


@pytest.mark.parametrize("kind", ["distilled", "distilled-inpainting"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_inpaint_equals_the_inpainting_pipeline(pipeline, images, kind, guidance):
    pipe = StableDiffusionInpaintPipeline(**pipeline(kind).components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    mask = torch.zeros(2, 1, 32, 32)
    mask[..., 8:20, 4:30] = 1
    noise = noise_like_the_pipelines()
    expected = pipe(
        ["a cat", "a dog"],
        image=images,
        mask_image=mask,
        latents=noise,
        height=32,
        width=32,
        num_inference_steps=6,
        guidance_scale=guidance,
        output_type="pt",
    ).images
    model = read_folder(pipeline.folder(kind), name=kind)
    condition = model.condition(["a cat", "a dog"])
    measured = inpaint(model, images, mask, condition, steps=6, noise=noise, guidance=guidance)
    torch.testing.assert_close(measured, expected, **TOLERANCE)


def test_inpainting_without_a_made_model_keeps_the_known_pixels(pictures):
    model = IdealDenoiser(pictures, NoiseSchedule.linear())
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., 3:] = 1
    images = pictures[:2]
    repainted = inpaint(model, images, mask, steps=20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(repainted[..., :3], images[..., :3])
    halves = torch.cdist(repainted[..., 3:].flatten(1), pictures[..., 3:].flatten(1))
    assert halves.min(dim=1).values.max() < 0.05  # the rest comes from the data, too


def test_a_light_edit_returns_a_member_of_the_data(pictures):
    model = IdealDenoiser(pictures, NoiseSchedule.linear())
    edited = edit(model, pictures, strength=0.2, steps=50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(edited, pictures, atol=1e-3, rtol=0)


def test_edit_and_inpaint_do_not_depend_on_the_rest_of_the_batch(pipeline, images):
    model, mask = read_folder(pipeline.folder("distilled"), name="distilled"), torch.zeros(1, 1, 32, 32)
    mask[..., 10:20] = 1
    condition, noise = model.condition(["a cat"]), noise_like_the_pipelines()
    edited = edit(model, images, condition, strength=0.5, steps=6, noise=noise)
    alone = edit(model, images[1:], condition, strength=0.5, steps=6, noise=noise[1:])
    torch.testing.assert_close(edited[1:], alone, **TOLERANCE)
    repainted = inpaint(model, images, mask, condition, steps=4, noise=noise)
    alone = inpaint(model, images[1:], mask, condition, steps=4, noise=noise[1:])
    torch.testing.assert_close(repainted[1:], alone, **TOLERANCE)


@pytest.mark.parametrize("strength", [0.0, 0.05, 1.1])
def test_a_strength_without_steps_is_named(pictures, strength):
    model = IdealDenoiser(pictures, NoiseSchedule.linear())
    with pytest.raises(ValueError, match=r"steps leaves (0|11) to run; expected 1 to 10"):
        edit(model, pictures, strength=strength, steps=10)
