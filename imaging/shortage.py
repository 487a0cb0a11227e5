"""What to do when memory runs out: the same work again, in smaller parts."""

from collections.abc import Callable
from typing import TypeVar

import torch

SMALLEST = 128
"""Side in pixels of the smallest parts that are tried: smaller ones would be seams more than pictures."""

Result = TypeVar("Result")


def short_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on a GPU or in the computer."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # Of the computer's own memory torch has no class of error.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def in_smaller_parts(
    work: Callable[[int], Result], largest: int, smallest: int = SMALLEST
) -> tuple[Result, int]:
    """Do `work` in parts with sides of `largest` pixels, of half that again as long as memory runs out.

    Returns its result and the side with which it was done. Raises what `work` raises with the smallest sides,
    and every other error at once.
    """
    side = largest
    while True:
        try:
            return work(side), side
        except (MemoryError, RuntimeError) as error:
            if not short_of_memory(error) or side // 2 < smallest:
                raise
        # Only here is the failed attempt gone, which its traceback held on to.
        side //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def said_of(side: int, largest: int) -> tuple[str, ...]:
    """Return the note for a picture that was worked on in smaller parts than usual; none for others."""
    words = f"memory was short: done in parts of {side} px instead of {largest}, which changes the result"
    return (words,) if side < largest else ()
