"""How far work of several parts is, told as steps of the whole."""

from attacks.ball import Images, Losses
from protect.method import Progress


class Counted:
    """A callback for `attacks.pgd` that hands the calls of several runs on as steps of one.

    Of `total` calls, the one that came after `n` others is step `n * steps // total`. Once the callback
    returns something true, every run ends at its next step; `stopped` says so.
    """

    def __init__(self, callback: Progress | None, *, steps: int, total: int) -> None:
        self._callback, self._steps, self._total, self._calls = callback, steps, total, 0
        self.stopped = False

    def __call__(self, step: int, perturbed: Images, losses: Losses) -> bool:
        if self._callback is not None and not self.stopped:
            whole = self._calls * self._steps // self._total
            self.stopped = bool(self._callback(whole, perturbed, losses))
        self._calls += 1
        return self.stopped
