"""Write a model with a changed denoiser or text encoder as a folder in diffusers' layout, which `load` and
diffusers read."""

import shutil
import tempfile
from pathlib import Path
from typing import cast

from diffusion.folder import quiet_libraries
from diffusion.latent import LatentDiffusion
from diffusion.load import fetch
from diffusion.text import TextEncoder

PARTS = ("vae", "tokenizer", "tokenizer_2", "scheduler")
READ = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5", "*.onnx")


def write_folder(model: LatentDiffusion, source: str, out: Path) -> None:
    """Write a model's denoiser and text encoders beside the other parts of what it was made from.

    The folder appears whole or not at all.

    Args:
        model: these are written in their own precision.
        source: the name or folder that `load` read it from.
        out: a folder that does not exist yet.

    Raises:
        ValueError: the source is a single file, whose parts cannot be copied.
        FileExistsError: `out` exists.
    """
    path = Path(source).expanduser()
    if path.is_file():
        raise ValueError(f"{source} is a single file: convert it to a folder, whose parts can be copied")
    folder = path if path.is_dir() else fetch(source)
    if out.exists():
        raise FileExistsError(f"{out} exists: name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}") as place:
        made = Path(place) / "made"
        made.mkdir()
        shutil.copy2(folder / "model_index.json", made)
        for part in PARTS:
            if (folder / part).is_dir():
                shutil.copytree(folder / part, made / part, ignore=shutil.ignore_patterns(*READ))
        names = sorted(path.name for path in folder.glob("text_encoder*") if path.is_dir())
        with quiet_libraries():
            model.unet.save_pretrained(made / "unet")
            for name, text in zip(names, model.texts, strict=True):
                cast(TextEncoder, text).encoder.save_pretrained(made / name)
        made.rename(out)
