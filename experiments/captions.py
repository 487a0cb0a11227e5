"""Short captions computed from a picture's file name and its colours, for text-conditioned training
without a captioner."""

import re
from pathlib import PurePath

import torch
from jaxtyping import Float
from torch import Tensor

# Anchor colours as (name, red, green, blue); a pixel votes for the nearest one.
_COLOURS: tuple[tuple[str, float, float, float], ...] = (
    ("black", 0.05, 0.05, 0.05),
    ("grey", 0.50, 0.50, 0.50),
    ("white", 0.95, 0.95, 0.95),
    ("red", 0.70, 0.12, 0.12),
    ("orange", 0.90, 0.50, 0.10),
    ("yellow", 0.90, 0.85, 0.20),
    ("green", 0.25, 0.45, 0.15),
    ("teal", 0.15, 0.50, 0.50),
    ("blue", 0.20, 0.35, 0.75),
    ("sky", 0.60, 0.75, 0.90),
    ("purple", 0.45, 0.20, 0.55),
    ("pink", 0.90, 0.55, 0.65),
    ("brown", 0.40, 0.26, 0.15),
    ("tan", 0.75, 0.62, 0.45),
)


COLOUR_NAMES = tuple(colour[0] for colour in _COLOURS)


def subject(path: PurePath) -> str:
    """The words of a file name: `n01443537_goldfish.jpg` and `goldfish07.jpg` both say `goldfish`."""
    words = re.sub(r"^n\d{8}_", "", path.stem)
    return re.sub(r"[\d_]+", " ", words).strip().lower()


def colour_words(image: Float[Tensor, "3 height width"]) -> str:
    """Name the two most frequent colours of one image in [0,1], then its brightness and its contrast."""
    pixels = image[:, ::4, ::4].flatten(1).T
    anchors = pixels.new_tensor([colour[1:] for colour in _COLOURS])
    votes = torch.cdist(pixels, anchors).argmin(1).bincount(minlength=len(_COLOURS))
    first, second = (_COLOURS[int(index)][0] for index in votes.topk(2).indices)
    luma = pixels @ pixels.new_tensor([0.299, 0.587, 0.114])
    brightness = ("dark", "dim", "mid tone", "bright")[int((luma.mean() * 10 - 2.3).clamp(0, 3))]
    contrast = "soft" if luma.std() < 0.18 else "contrasty"
    return f"{first} and {second}, {brightness}, {contrast}"


def caption(path: PurePath, image: Float[Tensor, "3 height width"], *, medium: str = "photo") -> str:
    """A full caption, for instance `a photo of a goldfish, orange and black, dim, soft`."""
    return f"a {medium} of a {subject(path)}, {colour_words(image)}"


def shortened(full: str, draw: float) -> str:
    """Drop parts of a caption, so that a model learns short ones too and, on "", its unconditional half.

    `draw` is uniform on [0,1): 10 % become empty, 10 % keep the medium alone, 15 % lose their colours and
    15 % their subject.
    """
    head, _, colours = full.partition(", ")
    medium = head.split(" of ")[0]
    if draw < 0.10:
        return ""
    if draw < 0.20:
        return medium
    if draw < 0.35:
        return head
    if draw < 0.50:
        return f"{medium}, {colours}"
    return full
