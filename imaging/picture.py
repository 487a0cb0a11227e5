"""Picture: a file's pixels, exactly as they were, with everything else that the file told about them."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, UInt
from torch import Tensor

from imaging.tiles import Box

Images = Float[Tensor, "batch 3 height width"]
Masks = Float[Tensor, "batch 1 height width"]
Integers = UInt[Tensor, "frames 3 height width"]
Alpha = UInt[Tensor, "frames 1 height width"]


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture or animation, upright, in RGB, with its metadata. Tensors are on the CPU.

    The pixels stay the integers of the file, a byte or two each; floats are made on demand, and
    `picture.region(box).pixels` makes them for one tile only. Treat the tensors as read-only.

    Attributes:
        integers: the RGB values, uint8 or (16 bits per channel) uint16 [frames, 3, height, width].
        alpha: opacity of the same type [frames, 1, height, width], or None when the picture has none.
        format: name of the format it was read from: PNG, JPEG, WEBP, TIFF, AVIF, HEIC, GIF or BMP.
        icc: embedded RGB colour profile; None stands for sRGB.
        exif: EXIF block from its byte-order mark on, without orientation and previews.
        xmp: XMP packet, without orientation and previews.
        dpi: horizontal and vertical resolution in pixels per inch.
        text: keyword and value of each PNG text; JPEG and GIF comments have the keyword "Comment".
        colour_chunks: PNG's own colour statements (gAMA, cHRM, sRGB, cICP), by name.
        durations: milliseconds per frame of an animation; empty for a still picture and for TIFF pages.
        plays: how often an animation is shown; 0 stands for endlessly.
        notes: sentences about what reading had to convert, drop or guess.
    """

    integers: Integers
    alpha: Alpha | None = None
    format: str = "PNG"
    icc: bytes | None = field(default=None, repr=False)
    exif: bytes | None = field(default=None, repr=False)
    xmp: bytes | None = field(default=None, repr=False)
    dpi: tuple[float, float] | None = None
    text: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    colour_chunks: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    durations: tuple[int, ...] = ()
    plays: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape, alpha = self.integers.shape, self.alpha
        if alpha is not None and (
            alpha.shape != (shape[0], 1, *shape[2:]) or alpha.dtype != self.integers.dtype
        ):
            raise ValueError(f"alpha {tuple(alpha.shape)} does not belong to pixels {tuple(shape)}")
        if len(self.durations) not in (0, shape[0]):
            raise ValueError(f"expected a duration for each of {shape[0]} frames, got {len(self.durations)}")

    @classmethod
    def from_pixels(cls, images: Images) -> "Picture":
        """Make an 8-bit picture without metadata from images in [0, 1]; several become pages."""
        return cls(_to_integers(images, 255))

    @property
    def frames(self) -> int:
        return self.integers.shape[0]

    @property
    def height(self) -> int:
        return self.integers.shape[-2]

    @property
    def width(self) -> int:
        return self.integers.shape[-1]

    @property
    def levels(self) -> int:
        """The integer that stands for full intensity: 255, or 65535 for 16 bits per channel."""
        return torch.iinfo(self.integers.dtype).max

    @property
    def pixels(self) -> Images:
        """The pixels as float32 in [0, 1], made anew at each access: four bytes per value."""
        return self.integers.to(torch.float32).div_(self.levels)

    @property
    def visible_mask(self) -> Masks:
        """1 where a pixel can be seen, 0 where it is transparent: float32 [frames, 1, height, width]."""
        if self.alpha is None:
            return torch.ones(1).expand(self.frames, 1, self.height, self.width)
        return (self.alpha != 0).float()

    def region(self, box: Box) -> "Picture":
        """Return the part of the picture inside `box` as a picture that shares its memory."""
        rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
        alpha = None if self.alpha is None else self.alpha[..., rows, columns]
        return replace(self, integers=self.integers[..., rows, columns], alpha=alpha)

    def frame(self, index: int) -> "Picture":
        """Return one frame as a picture that shares its memory."""
        one = slice(index, index + 1)
        alpha = None if self.alpha is None else self.alpha[one]
        return replace(self, integers=self.integers[one], alpha=alpha, durations=self.durations[one])

    def with_pixels(self, images: Images) -> "Picture":
        """Return the same picture with new pixels, rounded to levels; fully transparent ones keep theirs.

        Args:
            images: values in [0, 1] of the picture's own shape, on any device; outside values are clamped.

        Raises:
            ValueError: the shape differs or a value is not finite.
        """
        if images.shape != self.integers.shape:
            expected, got = tuple(self.integers.shape), tuple(images.shape)
            raise ValueError(f"new pixels must have the picture's shape {expected}, got {got}")
        integers = _to_integers(images, self.levels)
        return replace(self, integers=self._keep_hidden(integers))

    def _keep_hidden(self, integers: Integers) -> Integers:
        if self.alpha is None:
            return integers
        hidden: Bool[Tensor, "frames 1 height width"] = self.alpha == 0
        return torch.where(hidden, self.integers, integers)


def on_white(picture: Picture) -> Images:
    """Return the first frame as float32 [1, 3, height, width] in [0, 1], on white where transparent."""
    first = picture.frame(0)
    if first.alpha is None:
        return first.pixels
    opacity = first.alpha.float() / first.levels
    return opacity * first.pixels + (1 - opacity)


def all_finite(images: Images) -> bool:
    """Say whether no value is NaN or infinite, without a second tensor of the images' size."""
    return all(bool(extreme.isfinite()) for extreme in images.aminmax())


def _to_integers(images: Images, levels: int) -> Integers:
    if not all_finite(images):
        raise ValueError("pixels must be finite; got NaN or infinity")
    scaled = images.detach().to("cpu", torch.float32) * levels
    return scaled.round_().clamp_(0, levels).to(torch.uint8 if levels == 255 else torch.uint16)
