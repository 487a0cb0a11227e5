"""The built-in text-to-image model, and prompts of it."""

import pytest
import torch

from diffusion.load import load

PROMPTS = (
    "a photo of a goldfish, orange",
    "a painting of a house",
    "red boats",
    "a dim field, green and grey",
)


@pytest.fixture(scope="session")
def builtin():
    return load("builtin")


@pytest.fixture
def prompts():
    return list(PROMPTS)


@pytest.fixture
def small_vocabulary(builtin, monkeypatch):
    """Lets a scan try the tokens from one number up to another alone."""
    table = builtin.text.vocabulary()[0]

    def choose(first, end):
        words = torch.zeros(len(table), dtype=torch.bool)
        words[first:end] = True
        monkeypatch.setattr("diffusion.text.TextEncoder.vocabulary", lambda self: (table, words))

    return choose
