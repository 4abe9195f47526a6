"""Image files to arrays: reading, checking, resizing and the number of channels.

Every image in the project is `uint8 [height, width, channels]` with 1 (grey) or 3 (RGB) channels until it reaches the
device; here is the one place where an encoded file becomes such an array.
"""

import io
import pathlib
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from dl_core.errors import UsageError

Resize = Literal["stretch", "crop"]
EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})
_ORIENTATION_TAG, _SIDEWAYS = 0x0112, frozenset({5, 6, 7, 8})


class UnreadableImage(UsageError):
    """A file that should hold an image and does not.

    name: the file, or the record of a data set.
    reason: what the decoder said.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"cannot read the image {name}: {reason}; mend or remove it, or pass on_error='skip'")
        self.name, self.reason = name, reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.name, self.reason)  # the default would hand the message to __init__ as the name


def decode_image(
    file: str | pathlib.Path | bytes,
    *,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    resize: Resize = "stretch",
    name: str | None = None,
) -> UInt8[np.ndarray, "h w c"]:
    """One encoded image as an array, upright (EXIF orientation applied), resized and in the channels asked for.

    Args:
      file: a path, or the encoded bytes themselves.
      image_size: (height, width) of the result in pixels; as stored by default.
      channels: 1 for grey (ITU-R 601 luma), 3 for RGB; as stored by default. Transparency is dropped, of an animation
        the first frame is taken, and 16-bit grey is scaled to 8 bits.
      resize: "stretch" to the size, or "crop" the middle after scaling the shorter side.
      name: what to call the image in an error; the path by default.

    Returns:
      uint8 [h, w, c].

    Raises:
      UnreadableImage: the file is missing, damaged, or not an image.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip at 255
                image = Image.fromarray(((np.asarray(image, np.uint32) + 128) // 257).clip(0, 255).astype(np.uint8))
            grey = channels == 1 if channels else image.mode in _GREY_MODES
            return _as_array(_resized(image.convert("L" if grey else "RGB"), image_size, resize))
    except Exception as error:  # on damaged bytes a decoder may raise anything
        label = name or ("(bytes)" if isinstance(file, bytes) else str(file))
        raise UnreadableImage(label, f"{type(error).__name__}: {error}") from error


def image_header(path: str | pathlib.Path) -> tuple[int, int, int]:
    """Height, width and channels of an image file, from its header and checksums, without decoding the pixels.

    Args:
      path: the file.

    Returns:
      (height, width, channels) as `decode_image` would give them.

    Raises:
      UnreadableImage: the header or a checksum is wrong. Damage that only shows on decoding passes.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if Image.Image.getexif(image).get(_ORIENTATION_TAG) in _SIDEWAYS:  # PNG's own getexif would decode
                width, height = height, width
            channels = 1 if image.mode in _GREY_MODES else 3
            image.verify()
        return height, width, channels
    except Exception as error:  # as above
        raise UnreadableImage(str(path), f"{type(error).__name__}: {error}") from error


def conform_images(
    images: UInt8[np.ndarray, "n h w c"],
    *,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    resize: Resize = "stretch",
) -> UInt8[np.ndarray, "n new_h new_w new_c"]:
    """Images of one size brought to another size or number of channels; the same array where nothing is asked.

    Args:
      images: uint8 [n, h, w, c].
      image_size: (height, width) in pixels, or None to leave it. Resizing is bilinear, with antialiasing when smaller.
      channels: 1 or 3 (from 3 or 1), or None to leave it.
      resize: "stretch" or "crop", as in `decode_image`.

    Returns:
      uint8 [n, new_h, new_w, new_c].

    Raises:
      UsageError: no way is known from this number of channels to that.
    """
    if channels is not None and channels != images.shape[-1]:
        if (images.shape[-1], channels) not in {(1, 3), (3, 1)}:
            raise UsageError(f"channels={channels} was asked of images with {images.shape[-1]} channels; "
                             "only grey to RGB and RGB to grey are known")  # fmt: skip
        if channels == 3:
            images = np.repeat(images, 3, axis=-1)
        else:
            grey = (_as_array(Image.fromarray(image).convert("L")) for image in images)
            images = np.stack(list(grey)) if len(images) else images[..., :1]
    if image_size is None or image_size == images.shape[1:3]:
        return images
    resized = np.empty((len(images), *image_size, images.shape[-1]), np.uint8)
    for image, out in zip(images, resized, strict=True):
        for channel in range(images.shape[-1]):  # any number of channels, at no cost for grey
            plane = Image.fromarray(np.ascontiguousarray(image[..., channel]))
            out[..., channel] = np.asarray(_resized(plane, image_size, resize))
    return resized


def _resized(image: Image.Image, image_size: tuple[int, int] | None, resize: Resize) -> Image.Image:
    if image_size is None or image_size == (image.height, image.width):
        return image
    size = (image_size[1], image_size[0])
    if resize == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    return image.resize(size, Image.Resampling.BILINEAR)


def _as_array(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    array = np.asarray(image, np.uint8)
    return array[..., None] if array.ndim == 2 else array
