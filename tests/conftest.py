"""What every test shares: one thread, fixed defaults for hypothesis, and the small exact worlds."""

import os
from pathlib import Path

# Before torch or a hub client is imported: the suite runs without a network and never waits for one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

# On a busy two-core machine two threads are many times slower than one for networks this small.
torch.set_num_threads(1)
settings.register_profile("vernis", deadline=None, max_examples=25)
settings.load_profile("vernis")


@pytest.fixture
def generator() -> torch.Generator:
    """Seeded randomness of a test's own."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of published weights and pictures that `VERNIS_DATA` names; skips a test without it."""
    folder = Path(os.environ.get("VERNIS_DATA") or "absent")
    if not folder.is_dir():
        pytest.skip("VERNIS_DATA names no folder with published weights and pictures")
    return folder
