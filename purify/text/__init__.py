"""Purifying what a text classifier reads: its encoder's hidden states, by DiffuseDef."""

from purify.text.classify import TextClassifier
from purify.text.defense import DiffuseDef
from purify.text.denoiser import StateDenoiser, denoising_loss

__all__ = ["DiffuseDef", "StateDenoiser", "TextClassifier", "denoising_loss"]
