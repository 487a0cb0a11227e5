"""Make the six example pictures, 512 px square: `python examples/make_pictures.py`.

Four are scikit-image's samples: astronaut (NASA, public domain), chelsea (Stefan van der Walt, CC0), coffee
(Rachel Michetti, CC0) and rocket (SpaceX, CC0). Two are drawn here, by code: a flat poster and a picture of
brush strokes.
"""

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFilter

SIDE = 512
HERE = Path(__file__).parent


def square(pixels: np.ndarray) -> Image.Image:
    """The centre of a photograph, its short side brought to `SIDE`."""
    picture = Image.fromarray(pixels).convert("RGB")
    scale = SIDE / min(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.LANCZOS)
    left, top = ((extent - SIDE) // 2 for extent in picture.size)
    return picture.crop((left, top, left + SIDE, top + SIDE))


def poster() -> Image.Image:
    """Hills, a sun and a sailing boat in flat colours, drawn at four times the size for smooth edges."""
    scale = 4
    picture = Image.new("RGB", (SIDE * scale, SIDE * scale), "#f4d8a8")
    draw = ImageDraw.Draw(picture)

    def points(*pairs: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * scale, y * scale) for x, y in pairs]

    for band, colour in enumerate(["#f6c98f", "#f2b47c", "#ea9a6f", "#d97f6a"]):
        draw.rectangle(points((0, 90 + 50 * band), (SIDE, SIDE)), fill=colour)
    draw.ellipse(points((300, 90), (420, 210)), fill="#fff3c9")
    hills = [("#7c5c7e", 250, 40, 0.011), ("#4f4a72", 300, 34, 0.017), ("#2f3c63", 345, 22, 0.027)]
    for colour, level, height, frequency in hills:
        crest = [(x, level - height * np.sin(frequency * x + level)) for x in range(0, SIDE + 1, 4)]
        draw.polygon(points((0, SIDE), *crest, (SIDE, SIDE)), fill=colour)
    draw.rectangle(points((0, 400), (SIDE, SIDE)), fill="#20506e")
    for row in range(410, SIDE, 14):
        shift = (row * 37) % 90
        for x in range(-shift, SIDE, 90):
            draw.rectangle(points((x, row), (x + 44, row + 3)), fill="#3f7f96")
    draw.polygon(points((120, 430), (230, 430), (210, 462), (140, 462)), fill="#7a2f2b")
    draw.polygon(points((176, 300), (176, 424), (118, 424)), fill="#fdf6e8")
    draw.polygon(points((182, 318), (182, 424), (232, 424)), fill="#e8d3b4")
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def brushes() -> Image.Image:
    """A meadow under a windy sky in thousands of short curved strokes, coarse first and fine last."""
    random = np.random.default_rng(7)
    picture = Image.new("RGB", (SIDE, SIDE), "#6f8fb0")
    for count, length, width in [(1500, 60, 12), (4000, 34, 6), (9000, 18, 3)]:
        draw = ImageDraw.Draw(picture)
        for x, y in random.uniform(0, SIDE, (count, 2)):
            angle = np.sin(x / 70) + np.cos(y / 50) if y < 280 else -np.pi / 2 + 0.5 * np.sin(x / 40)
            bend = np.array([np.cos(angle), np.sin(angle)]) * length / 2
            ends = [(x - bend[0], y - bend[1]), (x + 2, y + 3), (x + bend[0], y + bend[1])]
            draw.line(ends, fill=_paint(x, y, random), width=width, joint="curve")
        picture = picture.filter(ImageFilter.GaussianBlur(0.4))
    return picture


def _paint(x: float, y: float, random: np.random.Generator) -> tuple[int, ...]:
    """The colour of the scene at a point, as a brush with dirty paint would have it."""
    sky, cloud = np.array([70, 120, 185]), np.array([235, 235, 225])
    grass, poppy = np.array([90, 130, 55]), np.array([200, 50, 40])
    if y < 280:
        share = np.clip(np.sin(x / 55 + np.sin(y / 30) * 2) * np.sin(y / 45) + 0.1, 0, 1)
        colour = sky + (cloud - sky) * share
    else:
        flower = np.sin(x / 13) * np.cos(y / 11) > 0.8
        colour = poppy if flower else grass + np.array([70, 60, 10]) * (y - 280) / 232
    return tuple(int(channel) for channel in np.clip(colour + random.normal(0, 16, 3), 0, 255))


def main() -> None:
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        square(getattr(skimage.data, name)()).save(HERE / f"{name}.png", optimize=True)
    poster().save(HERE / "poster.png", optimize=True)
    brushes().save(HERE / "brushes.png", optimize=True)


if __name__ == "__main__":
    main()
