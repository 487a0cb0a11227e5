"""What is said of one picture: the rows of `detect --report` and the lines of `detect --json`."""

from dataclasses import dataclass, field

from detect.calibration import Verdict
from imaging.batch.runner import Status


@dataclass(frozen=True)
class Record:
    """One input; what was not found out is None."""

    path: str
    status: Status
    error: str | None = None
    sha256: str | None = None
    """Of the file's bytes."""
    width: int | None = None
    height: int | None = None
    format: str | None = None
    jpeg_quality_estimate: int | None = None
    logit: float | None = None
    prob_fake: float | None = None
    """Calibrated, where half of all pictures are generated."""
    label: Verdict | None = None
    threshold: tuple[float, float] | None = None
    """Probabilities below which a picture is called real, and from which on generated."""
    calibration_id: str | None = None
    model_id: str | None = None
    preprocessing_id: str | None = None
    heatmap_path: str | None = None
    explanation: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def input(self) -> str:
        """The path, under the name that runs over many files know."""
        return self.path


def line(record: Record) -> str:
    """Say in one line what is said of a picture."""
    if record.status == "failed":
        return f"failed     {record.path}: {record.error}"
    told = f"{record.label:10} {record.prob_fake:.3f}  {record.path}"
    more = [*(["as before"] if record.status == "skipped" else []), *record.explanation, *record.warnings]
    return f"{told} ({'; '.join(more)})" if more else told
