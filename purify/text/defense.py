"""DiffuseDef: denoise the hidden states of a text classifier before its head decides."""

from typing import Any, Literal, Self, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.samplers import Step, ddpm_mean, posterior_deviation
from diffusion.tape import NoiseTape, Seeds
from purify.text.denoiser import AttentionMask, StateDenoiser, States

Logits = Float[Tensor, "batch classes"]
Order = Literal["paper", "release"]

BLOCK = 16
"""Tokens whose noise comes from one stream: a text's noise must not depend on how far it is padded."""


class DiffuseDef(nn.Module):
    """A text classifier that purifies its encoder's last hidden states.

    DiffuseDef (Li et al., ACL 2025, arXiv 2407.00248): states of a text are copied `ensemble` times, noised,
    denoised by `steps` ancestral steps and averaged; the classifier's own pooler and head run on the mean.
    The classifier is any of the transformers family for sequence classification: its `base_model` ends in
    `last_hidden_state`, and its output has `logits`. It and the denoiser are frozen and stay in evaluation.

    Each call draws fresh noise for each text by itself unless `seeds` are given. Texts are padded on the
    right. While a call runs, a hook sits on the encoder: do not share it between threads.
    """

    def __init__(
        self,
        classifier: nn.Module,
        denoiser: StateDenoiser,
        *,
        ensemble: int = 10,
        steps: int = 5,
        noise_at: int | None = 1,
        order: Order = "paper",
    ) -> None:
        """Put a denoiser into a classifier.

        Args:
            classifier: of the transformers family for sequence classification.
            denoiser: trained on the last hidden states of this classifier's encoder.
            ensemble: copies of each text's states that are averaged.
            steps: denoising steps `t'`, at most as many as the denoiser's schedule has; 0 is none.
            noise_at: timestep whose noise is added first; None adds none.
            order: "paper" walks timesteps down to 0; "release" walks them upwards from 0, as the published
                code does.

        Raises:
            ValueError: for options out of range, or a classifier without an encoder or of another width.
        """
        super().__init__()
        encoder = getattr(classifier, "base_model", classifier)
        if encoder is classifier:
            raise ValueError(
                f"{type(classifier).__name__} has no encoder of its own (base_model): "
                "take a transformers model for sequence classification"
            )
        width = getattr(getattr(classifier, "config", None), "hidden_size", denoiser.width)
        if width != denoiser.width:
            raise ValueError(
                f"the denoiser is for states of width {denoiser.width}; the encoder's is {width}"
            )
        total = len(denoiser.schedule)
        if ensemble < 1 or not 0 <= steps <= total:
            raise ValueError(f"ensemble is at least 1 and steps are 0 to {total}; got {ensemble} and {steps}")
        if noise_at is not None and not 0 <= noise_at < total:
            raise ValueError(f"noise_at is a timestep, 0 to {total - 1}, or None; got {noise_at}")
        if order not in ("paper", "release"):
            raise ValueError(f"order is 'paper' or 'release'; got {order!r}")
        self.classifier, self.denoiser = classifier, denoiser
        self.ensemble, self.steps, self.noise_at, self.order = ensemble, steps, noise_at, order
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation: a defence is not trained in place."""
        return super().train(False)

    def timesteps(self) -> list[int]:
        """Return the timesteps in the order in which they are walked."""
        ascending = list(range(self.steps))
        return ascending if self.order == "release" else ascending[::-1]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: AttentionMask | None = None,
        *,
        seeds: Seeds | None = None,
        generator: torch.Generator | None = None,
        **inputs: Any,
    ) -> Logits:
        """Return logits.

        Args:
            input_ids: tokens [batch, tokens]; or None where `inputs` hold `inputs_embeds`.
            attention_mask: 1 for tokens and 0 for padding; all are tokens if None.
            seeds: one integer for each text that settles its noise; drawn if None.
            generator: draws the seeds; torch's global one if None.
            inputs: whatever else the classifier takes.

        Raises:
            ValueError: for seeds that are not one per text.
        """

        def purified(encoder: nn.Module, arguments: tuple, output: Any) -> Any:
            states = output.last_hidden_state
            dealt = NoiseTape.fresh(len(states), generator).seeds if seeds is None else seeds
            changed = {**output, "last_hidden_state": self.purify(states, dealt, attention_mask)}
            if output.get("pooler_output") is not None:
                changed["pooler_output"] = _pooled(encoder, changed["last_hidden_state"])
            return type(output)(**changed)

        encoder = cast(nn.Module, self.classifier.base_model)
        hook = encoder.register_forward_hook(purified)
        try:
            given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
            return self.classifier(**given, return_dict=True).logits
        finally:
            hook.remove()

    def purify(self, states: States, seeds: Seeds, mask: AttentionMask | None = None) -> States:
        """Return the mean over copies of noised and denoised states, one seed for each text."""
        tape, schedule = NoiseTape(seeds), self.denoiser.schedule
        copies = states.repeat_interleave(self.ensemble, 0)
        masks = None if mask is None else mask.repeat_interleave(self.ensemble, 0)
        if self.noise_at is not None:
            alpha, sigma = schedule.level(self.noise_at)
            copies = alpha * copies + sigma * self._noise(tape, 0, states)
        for number, t in enumerate(self.timesteps(), 1):
            step = Step(number, t, *schedule.level(t), *(schedule.level(t - 1) if t else (1.0, 0.0)))
            noise = self.denoiser(copies, torch.full((len(copies),), t, device=copies.device), masks)
            copies = ddpm_mean(step, copies, (copies - step.sigma * noise) / step.alpha)
            if step.sigma_to > 0:
                copies = copies + posterior_deviation(step) * self._noise(tape, number, states)
        return self.average(copies)

    def average(self, copies: Float[Tensor, "copies tokens width"]) -> States:
        """Return each text's mean over its copies, which lie side by side."""
        return copies.unflatten(0, (-1, self.ensemble)).mean(1)

    def _noise(self, tape: NoiseTape, number: int, states: States) -> Float[Tensor, "copies tokens width"]:
        """Noise for all copies. More copies or more padding deal more noise and do not change the rest."""
        batch, tokens, width = states.shape
        block = torch.empty(batch, BLOCK, width)
        dealt = [
            torch.cat(
                [tape.noise(number, block, (start << 16) + copy) for start in range(0, tokens, BLOCK)], 1
            )
            for copy in range(self.ensemble)
        ]
        return torch.stack(dealt, 1)[:, :, :tokens].flatten(0, 1).to(states)


def _pooled(encoder: Any, states: States) -> Tensor:
    pooler = getattr(encoder, "pooler", None)
    if pooler is None:
        raise ValueError(f"{type(encoder).__name__} pools its states in a way that is not known here")
    if isinstance(pooler, nn.Linear):  # ALBERT's activation stands beside it
        return encoder.pooler_activation(pooler(states[:, 0]))
    return pooler(states)
