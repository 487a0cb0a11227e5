"""Write a detector as ONNX, with its calibration.

    python -m experiments.onnx runs/distildire/detector detector.onnx --side 32

The graph takes `images` [batch, 3, side, side], floats in [0, 1] after the detector's own equalisation, and
returns `logits` and `probabilities` of being generated. A diffusion model that the detector looks through is
part of the graph, which then takes one image at a time. What was written is run once and compared.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from detect.detector import Detector, load
from detect.distildire import DiffusionDetector
from imaging.picture import Images
from imaging.whole import whole

_OPSET = 18
_CLOSE = 1e-3
"""Logits of the graph and of torch may be apart by so much, relative to their size or 1."""


class Answer(nn.Module):
    """Logits and calibrated probabilities of a detector."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector, self.calibration = detector, detector.calibrated()

    def forward(self, images: Images) -> tuple[Tensor, Tensor]:
        logits = self.detector(images)
        return logits, self.calibration.probabilities(logits)


def export(folder: str, out: Path, side: int) -> float:
    """Write the detector of a folder, and return how far its logits are from torch's on noise.

    Raises DetectorError for a folder without a calibrated detector, and ValueError for a graph that answers
    otherwise.
    """
    import onnxruntime

    answer = Answer(load(folder)).eval()
    single = isinstance(answer.detector, DiffusionDetector)
    shape = (1 if single else 5, 3, side, side)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with whole(out) as partial, torch.no_grad():
        torch.onnx.export(
            answer,
            (images,),
            partial,
            input_names=["images"],
            output_names=["logits", "probabilities"],
            dynamic_shapes=None if single else {"images": {0: torch.export.Dim("batch")}},
            opset_version=_OPSET,
            dynamo=not single,
            external_data=False,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        again = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        logits = torch.from_numpy(session.run(["logits"], {"images": again.numpy()})[0])
        expected = answer(again)[0]
        apart = float(((logits - expected).abs() / expected.abs().clamp(min=1)).max())
        if not apart < _CLOSE:
            raise ValueError(f"the graph answers otherwise than the detector: logits are {apart:.2g} apart")
    return apart


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m experiments.onnx", description=__doc__.split("\n")[0])
    parser.add_argument("detector", help="folder")
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--side", type=int, required=True, help="of the pictures")
    given = parser.parse_args(arguments)
    try:
        apart = export(given.detector, given.out, given.side)
    except (ValueError, OSError) as error:
        print(f"onnx: {error}", file=sys.stderr)
        return 1
    print(f"{given.out}: logits within {apart:.1e} of torch's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
