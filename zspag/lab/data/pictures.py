"""Encoded images as unsigned bytes of one size, and what the coding did to them.

Invariant: an image that was coded with loss says so, whatever its file is called, and a photograph that is stored
turned (the EXIF orientation of cameras) comes out upright.
"""

import io
import struct
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features
from torch import Tensor

# Of a file with several frames the first one is read. Not every build of Pillow reads AVIF.
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
if features.check("avif"):
    IMAGE_SUFFIXES.add(".avif")
GREY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
BROKEN = (OSError, SyntaxError, EOFError, ValueError, struct.error, Image.DecompressionBombError)  # Pillow's, by format


@dataclass(frozen=True)
class Picture:
    """A decoded image."""

    pixels: NDArray[np.uint8]  # shape (H, W) if it is grey, else (H, W, 3), uint8
    lossy: str | None  # name of the coding if it loses something, "JPEG", "WebP" or "AVIF"; else None


def decode(contents: bytes, *, place: str, source: Path, image_size: int | None) -> Picture:
    """Decode an image and turn it upright; with ``image_size``, resize its shorter side and crop the middle square.

    ``place``, the path of the file inside the folder or archive ``source``, is for messages.

    Raises:
        ValueError: If the file is broken or has more than 8 bits per channel; the message names it.
    """
    try:
        with Image.open(io.BytesIO(contents)) as image:
            image.load()
    except BROKEN as error:
        # Pillow's own words for it name an object in memory.
        reason = "its bytes are no image format that is known" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"{place} in {source} is not a readable image ({reason}); replace or remove it") from error
    if image.mode in DEEP_MODES:
        raise ValueError(f"{place} in {source} has mode {image.mode}; only 8 bits per channel are supported")
    plain: Image.Image = image
    with warnings.catch_warnings(), suppress(*BROKEN):
        warnings.simplefilter("ignore")  # Pillow warns of damaged EXIF; the pixels are whole, and are all that is used
        plain = ImageOps.exif_transpose(image)
    plain = plain.convert("L" if image.mode in GREY_MODES else "RGB")
    if image_size is not None:
        scale = image_size / min(plain.size)
        width, height = (max(image_size, round(side * scale)) for side in plain.size)
        left, top = (width - image_size) // 2, (height - image_size) // 2
        plain = plain.resize((width, height), Image.Resampling.BICUBIC)
        plain = plain.crop((left, top, left + image_size, top + image_size))
    lossy = None
    if image.format in ("JPEG", "MPO") or "jpeg" in str(image.info.get("compression")):  # the latter inside a TIFF
        lossy = "JPEG"
    elif image.format == "WEBP" and b"VP8L" not in contents:  # the chunk of pixels coded without loss
        lossy = "WebP"
    elif image.format == "AVIF":  # it can be lossless, which is rare, and nothing in the file says so
        lossy = "AVIF"
    return Picture(np.array(plain), lossy)


def grey(images: Tensor) -> Tensor:
    """Return colour images (n, 3, H, W), uint8, as grey ones (n, 1, H, W), by the weights that Pillow uses (BT.601)."""
    red, green, blue = images.to(torch.int32).unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8)[:, None]


def stacked(pictures: Mapping[tuple[str, ...], Picture], *, source: Path, square: bool = True) -> Tensor:
    """Return the images, by their path inside ``source``, as one tensor (n, C, H, W), uint8; C = 1 if all are grey.

    Args:
        pictures: The images.
        source: The folder or archive, for messages.
        square: Refuse images that are not: the laboratory's nets have one side.

    Raises:
        ValueError: If an image has another size than the first by name, or is not square; the message names it.
    """
    remedy = "give image_size (--image-size) to resize all of them to one square size"
    first = min(pictures)
    height, width = pictures[first].pixels.shape[:2]
    for place in sorted(pictures):
        rows, columns = pictures[place].pixels.shape[:2]
        if (rows, columns) != (height, width):
            raise ValueError(
                f"{'/'.join(place)} in {source} is {columns}x{rows} pixels, but {'/'.join(first)} is {width}x{height};"
                f" {remedy}"
            )
    if square and height != width:
        raise ValueError(f"the images in {source} are {width}x{height}, not square; {remedy}")
    pixels = [picture.pixels for picture in pictures.values()]
    if all(image.ndim == 2 for image in pixels):
        return torch.from_numpy(np.stack(pixels))[:, None]
    coloured = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in pixels]
    return torch.from_numpy(np.stack(coloured)).permute(0, 3, 1, 2).contiguous()
