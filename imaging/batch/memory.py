"""How much memory a piece of work needed, on whatever it ran."""

import sys
from contextlib import suppress
from pathlib import Path

import torch


class PeakMemory:
    """The most memory in use since its making: of the GPU that a model is on, or else of this process.

    On a GPU it is what torch allocated. On Linux it is the resident set, whose high-water mark is set back
    through /proc/self/clear_refs; where that is not possible it is the process's highest since it started.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def megabytes(self) -> float:
        """The peak so far, in units of 10^6 bytes."""
        if self._device.type == "cuda":
            return round(torch.cuda.max_memory_allocated(self._device) / 1e6, 1)
        return round(_resident_peak() / 1e6, 1)


def _resident_peak() -> float:
    try:
        status = Path("/proc/self/status").read_text()
        return 1024.0 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        import resource  # which Windows lacks

        # macOS counts bytes where Linux counts kilobytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1.0 if sys.platform == "darwin" else 1024.0
        )
