"""Folders of images, one subfolder a class; the only file that imports Pillow."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt
import torch

from precalloc.errors import DataError, DependencyError
from precalloc.network.batches import Batch
from precalloc.network.data import CanonicalData, Places

if TYPE_CHECKING:
    from PIL.Image import Image

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class ImageOptions:
    """How an image becomes a tensor (3, size, size); the defaults are those of most ImageNet models.

    The shorter side is scaled to ``resize`` pixels (bilinear, with antialiasing), the central square of ``size`` pixels
    is cut out, and every channel of values in [0, 1] becomes (value - mean) / std.

    Parameters
    ----------
    size
        Height and width in pixels.
    resize
        Shorter side before cropping; 256 / 224 of ``size`` where it is 0.
    mean, std
        Per channel (red, green, blue), in units of full scale.
    """

    size: int = 224
    resize: int = 0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.size < 1 or (self.resize and self.resize < self.size) or min(self.std) <= 0:
            raise DataError(
                f"Image size {self.size}, resize {self.resize}, std {self.std} do not fit: size and std must be "
                "positive, and resize at least size."
            )

    @classmethod
    def parse(cls, text: str) -> ImageOptions:
        """Read "size=224&mean=0.5,0.5,0.5&std=0.5,0.5,0.5"; one number of mean or std stands for all channels.

        Raises
        ------
        DataError
            If an option is unknown or malformed.
        """
        known, found = [field.name for field in fields(cls)], {}
        for name, value in parse_qsl(text, keep_blank_values=True):
            if name not in known:
                raise DataError(f"Image option '{name}' is unknown. There are: {', '.join(known)}.")
            found[name] = _number(name, value) if name in ("size", "resize") else _channels(name, value)
        if text and not found:
            raise DataError(f"Image options '{text}' cannot be read. Write them as 'size=224&std=0.5'.")
        return cls(**found)  # type: ignore[arg-type]


def _number(name: str, value: str) -> int:
    if not value.isdecimal():
        raise DataError(f"Image option {name}='{value}' is no number of pixels. Write {name}=224.")
    return int(value)


def _channels(name: str, value: str) -> tuple[float, float, float]:
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        raise DataError(f"Image option {name}='{value}' is not one number or three. Write {name}=0.5,0.5,0.5.")
    red, green, blue = numbers * (3 // len(numbers))
    return red, green, blue


def image_folder(folder: str | Path, options: ImageOptions | None = None) -> CanonicalData:
    """Open a folder of images, decoded as they are needed; classes are its subfolders in alphabetical order.

    Raises
    ------
    DataError
        If there are no subfolders with images, or a file is no image.
    DependencyError
        If Pillow is missing.
    """
    chosen, root = options or ImageOptions(), Path(folder)
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DependencyError("Image folders need Pillow. Install it: pip install 'precalloc[images]'.") from error
    classes = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = [
        (file, label)
        for label, path in enumerate(classes)
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise DataError(
            f"{root} holds no subfolders with images ({', '.join(_SUFFIXES)}), nor a saved data set. "
            "Give one subfolder a class."
        )

    labels = torch.tensor([label for _, label in files])

    def read(places: Places) -> Batch:
        pixels = np.stack([read_image(files[place][0], chosen) for place in places])
        return Batch({"x": torch.from_numpy(pixels)}, labels[torch.from_numpy(places)])

    return CanonicalData(read, len(files), lambda: labels)


def read_image(path: Path, options: ImageOptions) -> npt.NDArray[np.float32]:
    """Decode one image, (3, size, size) in single precision.

    Raises
    ------
    DataError
        If it cannot be decoded.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            cropped = _crop(image.convert("RGB"), options)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}). Remove or mend it.") from error
    scaled = np.asarray(cropped, dtype=np.float32) / 255.0
    mean, std = (np.array(values, dtype=np.float32) for values in (options.mean, options.std))
    return np.ascontiguousarray(((scaled - mean) / std).transpose(2, 0, 1))


def _crop(image: Image, options: ImageOptions) -> Image:
    from PIL.Image import Resampling

    shorter = options.resize or round(options.size * 256 / 224)
    scale = shorter / min(image.size)
    width, height = (max(round(side * scale), options.size) for side in image.size)
    left, top = (width - options.size) // 2, (height - options.size) // 2
    resized = image.resize((width, height), Resampling.BILINEAR)
    return resized.crop((left, top, left + options.size, top + options.size))
