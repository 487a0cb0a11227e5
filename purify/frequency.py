"""Purifiers that work in the frequency domain: FreqPure keeps low frequencies, MANI-Pure shapes the noise.

Both act on pixels. Radii are shares of the Nyquist frequency, so that a setting means the same at any size:
the papers' radius of 10 is 0.625 on 32 pixels and 0.078 on 256.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion.codec import LatentModel
from diffusion.model import DiffusionModel
from diffusion.samplers import Step, ddpm_mean, denoise, posterior_deviation
from diffusion.schedule import Latents
from purify.diffpure import DiffPure, Images
from purify.methods import unknown
from purify.purifier import Draw, Move
from purify.reverse import walk

Radii = Float[Tensor, "height width"]
REFERENCES = ("input", "denoised")
MODES = ("literal", "spatial", "spectral")


def radii(height: int, width: int, like: Tensor) -> Radii:
    """Return each frequency's distance from zero, as a share of the Nyquist frequency of the longer side."""
    rows = torch.fft.fftfreq(height, device=like.device, dtype=like.dtype) * height
    columns = torch.fft.fftfreq(width, device=like.device, dtype=like.dtype) * width
    return torch.hypot(rows[:, None], columns[None]) / (max(height, width) / 2)


def keep_low(images: Images, reference: Images, amplitude: float, phase: float, slack: float) -> Images:
    """Return images with the low frequencies of a reference.

    Inside the radius `amplitude` magnitudes are the reference's; inside the radius `phase` phases stay within
    `slack` radians of its (Pei et al., 2025, arXiv 2505.01267, eq. 12-15). The phase difference is wrapped
    before it is clipped, without which a clip across the cut at pi would be wrong.
    """
    spectrum, wanted = torch.fft.fft2(images), torch.fft.fft2(reference)
    distance = radii(*images.shape[-2:], like=images)
    magnitude = torch.where(_within(distance, amplitude), wanted.abs(), spectrum.abs())
    difference = torch.angle(spectrum * wanted.conj()).clamp(-slack, slack)
    angle = torch.where(_within(distance, phase), wanted.angle() + difference, spectrum.angle())
    return torch.fft.ifft2(torch.polar(magnitude, angle)).real


def _within(distance: Radii, radius: float) -> Bool[Tensor, "height width"]:
    return distance <= radius + 1e-6


class FreqPure(DiffPure):
    """Keep the input's low frequencies at every step (Pei et al., 2025, ICML, arXiv 2505.01267).

    Follows the paper's equations; the released code overwrites the phase before it clips it, so that its
    clip does nothing. What is kept is not purified: a low-frequency perturbation passes.
    """

    def __init__(
        self,
        model: DiffusionModel,
        *,
        t: int = 1000,
        steps: int | None = 100,
        rounds: int = 1,
        amplitude: float = 0.625,
        phase: float = 0.625,
        slack: float = 0.3,
        reference: str = "input",
        clamp: bool = True,
    ) -> None:
        """Build the chain; see `DiffPure` for `t`, `steps`, `rounds` and `clamp`.

        Args:
            model: the prior, on pixels.
            amplitude: radius inside which magnitudes are the reference's, a share of Nyquist.
            phase: radius inside which phases stay near the reference's.
            slack: how near, in radians.
            reference: "input", or "denoised": the input noised by 50 steps and denoised in one, as the
                released code does.

        Raises:
            ValueError: as `DiffPure`, or for another reference.
        """
        super().__init__(model, t=t, steps=steps, rounds=rounds, clamp=clamp)
        if isinstance(model, LatentModel):
            raise ValueError(
                f"{type(self).__name__} works on pixels and {model.name} on latents; take diffpure, or a "
                "pixel model such as 'cifar10'"
            )
        if reference not in REFERENCES:
            raise ValueError(unknown("reference", reference, list(REFERENCES)))
        self.amplitude, self.phase, self.slack, self.reference = amplitude, phase, slack, reference

    def moves(self) -> list[Move]:
        encode, *between, decode = super().moves()
        if self.reference == "input":
            return [encode, *between, decode]
        return [encode, self._remember, *between, self._forget]

    def noise_to(self, t: int) -> Move:
        """As `DiffPure`; a remembered reference travels along in further channels."""
        plain = super().noise_to(t)

        def move(state: Latents, images: Images, draw: Draw) -> Latents:
            z, remembered = self._parted(state)
            return self._joined(plain(z, images, draw), remembered)

        return move

    def reverse(self, t: int, steps: int) -> list[Move]:
        return [self._kept(step) for step in walk(self.model, t, steps)]

    def _kept(self, step: Step) -> Move:
        deviation = posterior_deviation(step)

        def move(state: Latents, images: Images, draw: Draw) -> Latents:
            z, remembered = self._parted(state)
            reference = self._encode(images, images, draw) if remembered is None else remembered
            clean, _ = denoise(self.model, z, step, None, None, 1.0, clip=False)
            clean = self._keep(clean, reference)
            mean = ddpm_mean(step, z, clean)
            return self._joined(mean + deviation * draw(z) if deviation else mean, remembered)

        return move

    def _keep(self, clean: Latents, reference: Latents) -> Latents:
        pixels, wanted = self.model.decode(clean, clamp=False), self.model.decode(reference, clamp=False)
        return self.model.encode(keep_low(pixels, wanted, self.amplitude, self.phase, self.slack))

    def _remember(self, z: Latents, images: Images, draw: Draw) -> Latents:
        timestep = min(50, len(self.model.schedule) - 1)
        alpha, sigma = self.model.schedule.level(timestep)
        noised = alpha * z + sigma * draw(z)
        t = torch.full((len(z),), timestep, device=z.device)
        return self._joined(z, self.model.predict_clean(noised, t))

    def _forget(self, state: Latents, images: Images, draw: Draw) -> Images:
        return self._decode(self._parted(state)[0], images, draw)

    def _parted(self, state: Latents) -> tuple[Latents, Latents | None]:
        if state.shape[1] == self.model.latent_channels:
            return state, None
        z, remembered = state.split(self.model.latent_channels, 1)
        return z, remembered

    @staticmethod
    def _joined(z: Latents, remembered: Latents | None) -> Latents:
        return z if remembered is None else torch.cat([z, remembered], 1)


class ManiPure(FreqPure):
    """Shape the noise by the input's spectrum, then purify as FreqPure (MANI-Pure, 2025, arXiv 2509.25082).

    Bands of the spectrum weigh `1 / (mean magnitude^gamma + 1e-6)`. The paper can be read in three ways, all
    of them here and none of them confirmed by its authors:

    - "literal": the inverse transform of the weights is a map that multiplies white noise;
    - "spatial": the magnitude of the input filtered by the weights, an edge image, is that map. White noise
      times a map keeps a flat spectrum, so it is selective in place and not in frequency;
    - "spectral": the weights filter the noise itself, and low frequencies get next to none.

    In each the noise has the variance that the denoiser expects, and not its colour. The map depends on the
    input, and gradients flow through it. Times and radii are not in the paper: those here are ours.
    """

    def __init__(
        self,
        model: DiffusionModel,
        *,
        t: int = 100,
        steps: int | None = None,
        rounds: int = 1,
        mode: str = "spatial",
        gamma: float = 1.8,
        bands: int = 8,
        amplitude: float = 0.625,
        phase: float = 0.625,
        slack: float = 0.3,
        reference: str = "input",
        clamp: bool = True,
    ) -> None:
        """Build the chain; see `FreqPure` for what is not listed.

        Args:
            mode: the reading of the paper, see above.
            gamma: exponent of the bands' magnitudes.
            bands: number of rings of equal width.

        Raises:
            ValueError: as `FreqPure`, or for another mode.
        """
        super().__init__(
            model,
            t=t,
            steps=steps,
            rounds=rounds,
            amplitude=amplitude,
            phase=phase,
            slack=slack,
            reference=reference,
            clamp=clamp,
        )
        if mode not in MODES:
            raise ValueError(unknown("mode", mode, list(MODES)))
        self.mode, self.gamma, self.bands = mode, gamma, bands

    def noise_to(self, t: int) -> Move:
        alpha, sigma = self.model.schedule.level(t - 1)

        def move(state: Latents, images: Images, draw: Draw) -> Latents:
            z, remembered = self._parted(state)
            shaped = self.shaped(self.model.decode(draw(z), clamp=False), images)
            return self._joined(alpha * z + sigma * self.model.encode(shaped), remembered)

        return move

    def shaped(self, drawn: Images, images: Images) -> Images:
        """Return noise shaped by the images, both centred on one half: `2 noise - 1` is unit noise."""
        white, pixels = 2 * drawn - 1, 2 * images - 1
        weights = band_weights(pixels, self.gamma, self.bands)
        if self.mode == "spectral":
            gains = weights / _rms(weights)
            noise = torch.fft.ifft2(gains * torch.fft.fft2(white)).real
        elif self.mode == "spatial":
            edges = torch.fft.ifft2(weights * torch.fft.fft2(pixels)).real.abs()
            noise = edges / _rms(edges) * white
        else:
            kernel = torch.fft.ifft2(weights).real
            noise = kernel / _rms(kernel) * white
        return (noise + 1) / 2


def band_weights(pixels: Images, gamma: float, bands: int) -> Images:
    """Return `1 / (M^gamma + 1e-6)` at each frequency, M being the mean magnitude of the ring it lies in."""
    distance = radii(*pixels.shape[-2:], like=pixels)
    # a radius on the line between two rings belongs to the outer one, whatever the rounding
    ring = (distance / distance.max() * bands + 1e-5).long().clamp(max=bands - 1).flatten()
    magnitude = torch.fft.fft2(pixels).abs().flatten(2)
    members = torch.nn.functional.one_hot(ring, bands).to(magnitude)
    means = magnitude @ members / members.sum(0).clamp_min(1)
    return (1 / (means**gamma + 1e-6))[..., ring].view_as(pixels)


def _rms(values: Images) -> Float[Tensor, "batch channels 1 1"]:
    return values.square().mean((-2, -1), keepdim=True).sqrt().clamp_min(1e-12)
