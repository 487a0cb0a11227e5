"""What a `.safetensors` file holds, without reading its numbers."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from diffusion.known import MissingWeightsError

Shapes = dict[str, tuple[int, ...]]


def shapes_of(path: Path) -> Shapes:
    """Return the names and shapes of the tensors in a `.safetensors` file.

    Raises MissingWeightsError if it is absent, damaged or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise MissingWeightsError(f"there is no file {path}") from None
    except SafetensorError as error:
        raise MissingWeightsError(f"{path} is damaged ({error}): fetch it again") from error
