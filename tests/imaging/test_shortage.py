"""When memory runs out the same work is done in smaller parts, and nothing else is taken for it."""

import pytest
import torch

from imaging.shortage import in_smaller_parts, said_of, short_of_memory


def out_of(memory: str) -> Exception:
    if memory == "gpu":
        return torch.OutOfMemoryError("CUDA out of memory")
    if memory == "python":
        return MemoryError()
    try:
        torch.empty(2**58, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError("this computer has 2**58 bytes")


@pytest.mark.parametrize("memory", ["gpu", "python", "torch"])
def test_parts_are_halved_until_they_fit(memory):
    tried = []

    def work(side: int) -> str:
        tried.append(side)
        if side > 200:
            raise out_of(memory)
        return "done"

    assert in_smaller_parts(work, 1024) == ("done", 128)
    assert tried == [1024, 512, 256, 128]


def test_what_fits_at_once_is_done_at_once_and_not_spoken_of():
    assert in_smaller_parts(lambda side: side, 512) == (512, 512)
    assert said_of(512, 512) == ()
    assert "256 px instead of 512" in said_of(256, 512)[0]


def test_what_never_fits_is_raised_and_models_of_one_size_are_not_cut():
    def never(side: int) -> str:
        raise MemoryError

    with pytest.raises(MemoryError):
        in_smaller_parts(never, 512)
    tried = []
    with pytest.raises(MemoryError):
        in_smaller_parts(lambda side: tried.append(side) or never(side), 512, 512)
    assert tried == [512]


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("no"), KeyError("x")])
def test_other_errors_are_no_lack_of_memory(error):
    assert not short_of_memory(error)
    tried = []

    def work(side: int) -> None:
        tried.append(side)
        raise error

    with pytest.raises(type(error)):
        in_smaller_parts(work, 1024)
    assert tried == [1024]
