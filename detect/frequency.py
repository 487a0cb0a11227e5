"""What the spectrum alone gives away: statistics of block frequencies, and a linear classifier of them.

It is no detector of generators. It is the row that every other detector has to beat: resampling and
compression leave such traces, and on some published sets they answer nine questions of ten.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from detect.linear import LinearDetector
from imaging.blocks import dct, to_blocks
from imaging.picture import Images

Features = Float[Tensor, "batch features"]

COUNT = 387
"""Three planes of 64 mean magnitudes and 64 deviations, and each plane's share of coefficients that are not
nought."""

_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_NOUGHT = 1.0
"""Coefficients below this, in 1/255, are rounding."""
_FLOOR = 1e-2
"""Below every magnitude, so that logarithms are finite."""


def block_statistics(images: Images) -> Features:
    """Return statistics of the 8 x 8 block frequencies of luma and colours: [batch, COUNT].

    First, for each plane, the logarithms of the mean magnitudes of the 64 frequencies, row by row, then those
    of their standard deviations, over the picture's blocks and in units of 1/255; at the end the three shares
    of coefficients that are not nought. It takes decoded pixels, and so any format.
    """
    planes = torch.einsum("oc,nchw->nohw", images.new_tensor(_YCC), images * 255)
    coefficients = dct(to_blocks(planes)).flatten(2, 3).flatten(3)  # [batch, 3, blocks, 64]
    magnitude = (coefficients.abs().mean(2) + _FLOOR).log()
    deviation = (coefficients.std(2, correction=0) + _FLOOR).log()
    filled = (coefficients.abs() >= _NOUGHT).float().mean((2, 3))
    return torch.cat([torch.cat([magnitude, deviation], 2).flatten(1), filled], 1)


def names_of_statistics() -> list[str]:
    """Return what each of the `COUNT` statistics is, in words."""
    planes = ("brightness", "blue-yellow", "red-green")
    kinds = ("strength", "spread")
    named = [
        f"{kind} of {plane} at vertical {row}, horizontal {column} of 8"
        for plane in planes
        for kind in kinds
        for row in range(8)
        for column in range(8)
    ]
    return [*named, *(f"share of {plane} frequencies in use" for plane in planes)]


class FrequencyDetector(LinearDetector):
    """Logistic regression on `block_statistics`."""

    kind = "frequency"

    def __init__(self, *, regularisation: float = 1.0) -> None:
        """`regularisation` is the inverse strength of scikit-learn's penalty, its C."""
        super().__init__(COUNT, regularisation=regularisation)

    def statistics(self, images: Images) -> Features:
        return block_statistics(images)

    def explain(self, images: Images) -> list[str]:
        """Return the three statistics of one image that speak loudest."""
        parts = self.parts(block_statistics(images[:1]))[0]
        names = names_of_statistics()
        loudest = parts.abs().topk(3).indices.tolist()
        return [
            f"{names[index]}: {abs(float(parts[index])):.2f} towards "
            f"{'generated' if parts[index] > 0 else 'real'}"
            for index in loudest
        ]
