"""What one server holds for its visitors: desks for each, work in hand, the model that was loaded last."""

import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

from diffusion.choice import Choice
from diffusion.model import DiffusionModel
from protect.app.desk import Desk
from protect.app.running import Progress, Record, Running, Stopped
from protect.ensemble import Models
from protect.method import ProtectionMethod
from protect.methods import create
from protect.surrogate import Surrogates, load_for


class Studio:
    """The state behind the page. Work is done for one visitor at a time; the page's queue sees to that."""

    def __init__(self, root: Path) -> None:
        """Keep everything below `root`."""
        self.root = root
        self._desks: dict[tuple[str, str], Desk] = {}
        self._work: dict[str, Running] = {}
        self._sketches: dict[str, object] = {}
        self._loaded: tuple[tuple[Choice, bool], DiffusionModel] | None = None
        self._lock = threading.Lock()

    def desk(self, visitor: str, tab: str = "protect") -> Desk:
        """Return the visitor's desk of a tab, made when he first needs one.

        What he does in one tab leaves the results of the others.
        """
        with self._lock:
            if (visitor, tab) not in self._desks:
                self._desks[visitor, tab] = Desk(self.root)
            return self._desks[visitor, tab]

    def follow(self, visitor: str, running: Running[Record], made: list[Record]) -> Iterator[Progress]:
        """Do the visitor's work, which he can stop: put what is done into `made` and yield how far it is."""
        with self._lock:
            self._work[visitor] = running
        for told in running:
            if isinstance(told, Progress):
                yield told
            else:
                made.append(told)

    def stop(self, visitor: str) -> None:
        """Stop the visitor's work at its next step."""
        running = self._work.get(visitor)
        if running is not None:
            running.stop()

    def sketching(self, visitor: str) -> Callable[[float], None]:
        """Note that the visitor wants a sketch, no earlier one any more, and return the callback of the new.

        The callback raises Stopped once a later sketch, or none, is wanted.
        """
        mine = self._sketches[visitor] = object()

        def wanted(share: float) -> None:
            if self._sketches.get(visitor) is not mine:
                raise Stopped

        return wanted

    def leave(self, visitor: str) -> bool:
        """End the visitor's work, delete his desks, and say whether nobody is left."""
        with self._lock:
            running = self._work.pop(visitor, None)
            self._sketches.pop(visitor, None)
        if running is not None:
            running.end()  # what it wrote last would stay
        with self._lock:
            for mine in [each for each in self._desks if each[0] == visitor]:
                self._desks.pop(mine).remove()
            return not self._desks

    def surrogate(self, method: ProtectionMethod, chosen: Surrogates) -> Models:
        """Return the models that a method needs, loaded; a single one stays for the next picture.

        Raises MissingWeightsError, and ValueError where a model lacks what the method needs.
        """
        if len(chosen.members) > 1:
            return [load_for(method, choice, offline=True) for choice in chosen.members]
        return self.model(chosen.members[0], method)

    def warm_up(self) -> None:
        """Load what sketches need, before the first visitor.

        While one thread loads a model, no other may make modules of its own: the libraries make them empty.
        Sketches are made beside the work of others, which loads models, so they must have nothing to load.
        """
        assert self.sketcher.has_denoiser
        assert create("instant").origin is not None

    @cached_property
    def sketcher(self) -> DiffusionModel:
        """The built-in model, kept for sketches: it is small."""
        return Choice("builtin").load(offline=True)

    def model(self, choice: Choice, method: ProtectionMethod | None = None) -> DiffusionModel:
        """Return one model, for a method or to edit with, and keep it until another is asked for."""
        if method is not None and method.origin is not None:
            return load_for(method, choice, offline=True)
        denoiser = method is None or method.needs_denoiser
        key = (choice, denoiser)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # two large models would not fit
            self._loaded = (key, choice.load(offline=True, denoiser=denoiser))
        model = self._loaded[1]
        if method is not None:
            method.check(model)
        return model
