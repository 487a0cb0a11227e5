"""The built-in text-to-image model, and prompts of it."""

import pytest

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
