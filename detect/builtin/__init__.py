"""The detector that ships with this package, in the layout that `Detector.save` writes."""

from pathlib import Path

from detect.detector import Detector, load

BUILTIN = Path(__file__).parent


def load_detector(name: str) -> Detector:
    """Return the detector of a folder, or "builtin".

    Raises DetectorError for a folder that holds none.
    """
    return load(BUILTIN if name == "builtin" else Path(name).expanduser())
