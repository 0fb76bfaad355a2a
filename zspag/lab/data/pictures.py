"""Encoded images as unsigned bytes of one size, and what the coding did to them.

Invariant: an image that was coded with loss says so, whatever its file is called, and a photograph that is stored
turned, with a note of how, comes out upright.
"""

import io
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, features
from torch import Tensor

# Of a file with several frames the first one is read. Not every build of Pillow reads AVIF.
IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    *([".avif"] if features.check("avif") else []),
)
GREY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
BROKEN = (OSError, SyntaxError, EOFError, ValueError, struct.error, Image.DecompressionBombError)  # Pillow's, by format


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        pixels: Shape (H, W) if it is grey, else (H, W, 3), uint8.
        lossy: Name of the coding if it loses something, "JPEG", "WebP" or "AVIF"; else None.
    """

    pixels: NDArray[np.uint8]
    lossy: str | None


def decode(contents: bytes, *, place: str, source: Path, image_size: int | None) -> Picture:
    """Decode an image, turned upright if it says that it is stored otherwise (the EXIF orientation of cameras).

    Args:
        contents: The file's bytes.
        place: Path of the file inside the source, for messages.
        source: Folder or archive, for messages.
        image_size: Resize the shorter side to this many pixels and crop the middle square; None leaves the image alone.

    Raises:
        ValueError: If the file is broken or has more than 8 bits per channel; the message names it.
    """
    try:
        with Image.open(io.BytesIO(contents)) as image:
            image.load()
    except BROKEN as error:
        raise ValueError(f"{place} in {source} is not a readable image ({error}); replace or remove it") from error
    if image.mode in DEEP_MODES:
        raise ValueError(f"{place} in {source} has mode {image.mode}; only 8 bits per channel are supported")
    plain = _upright(image).convert("L" if image.mode in GREY_MODES else "RGB")
    return Picture(np.array(plain if image_size is None else _resized(plain, image_size)), _loss(image, contents))


def _upright(image: Image.Image) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged EXIF; the pixels are whole, and are all that is used
        try:
            return ImageOps.exif_transpose(image)
        except BROKEN:
            return image


def _loss(image: Image.Image, contents: bytes) -> str | None:
    if image.format in ("JPEG", "MPO") or "jpeg" in str(image.info.get("compression")):  # the latter inside a TIFF
        return "JPEG"
    if image.format == "WEBP" and b"VP8L" not in contents:  # the chunk of pixels coded without loss
        return "WebP"
    if image.format == "AVIF":  # it can be lossless, which hardly anybody uses and nothing in the file says
        return "AVIF"
    return None


def _resized(image: Image.Image, size: int) -> Image.Image:
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


def grey(images: Tensor) -> Tensor:
    """Return colour images (n, 3, H, W), uint8, as grey ones (n, 1, H, W), by the weights that Pillow uses (BT.601)."""
    red, green, blue = images.to(torch.int32).unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8)[:, None]


def check_sizes(
    source: Path, pictures: Mapping[str, Picture], *, remedy: str = "give image_size to resize all of them"
) -> None:
    """Require square images of one size.

    Args:
        source: Folder or archive, for messages.
        pictures: The images by their path inside the source.
        remedy: What to do about it, for messages.

    Raises:
        ValueError: If an image has another size than the first, or is not square; the message names it.
    """
    (first, reference), *others = sorted(pictures.items())
    height, width = reference.pixels.shape[:2]
    for place, picture in others:
        if picture.pixels.shape[:2] != (height, width):
            raise ValueError(
                f"{place} in {source} is {picture.pixels.shape[1]}x{picture.pixels.shape[0]} pixels, but"
                f" {first} is {width}x{height}; {remedy}"
            )
    if height != width:
        raise ValueError(f"the images in {source} are {width}x{height}, not square; {remedy}")


def stacked(pictures: Sequence[Picture], *, coloured: bool) -> Tensor:
    """Return images of one size as one tensor (n, C, H, W), uint8, with C = 3 if ``coloured``, else 1."""
    pixels = [picture.pixels for picture in pictures]
    if coloured:
        pixels = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in pixels]
    images: Tensor = torch.from_numpy(np.stack(pixels))
    return images.permute(0, 3, 1, 2).contiguous() if coloured else images[:, None]
