"""Image files to arrays: what is kept, what is converted, and what is refused by name."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from dl_core.data.images import UnreadableImage, conform_images, decode_image, image_header
from dl_core.errors import UsageError


def encoded(array, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)


def test_a_lossless_file_gives_back_its_pixels(pixels):
    np.testing.assert_array_equal(decode_image(encoded(pixels)), pixels)
    np.testing.assert_array_equal(decode_image(encoded(pixels[..., 0])), pixels[..., :1])


def test_channels_are_as_asked(pixels):
    luma = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    np.testing.assert_allclose(decode_image(encoded(pixels), channels=1)[..., 0], luma, atol=1)  # rounded to integers
    rgb = decode_image(encoded(pixels[..., 0]), channels=3)
    np.testing.assert_array_equal(rgb, np.repeat(pixels[..., :1], 3, axis=-1))
    transparent = np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)])
    np.testing.assert_array_equal(decode_image(encoded(transparent)), pixels)


def test_sixteen_bits_are_scaled_not_clipped():
    deep = np.array([[0, 257 * 100, 65535]], np.uint16)
    np.testing.assert_array_equal(decode_image(encoded(deep))[..., 0], [[0, 100, 255]])


TURNS = [(1, lambda x: x), (3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1)), (8, np.rot90)]


@pytest.mark.parametrize(("orientation", "upright"), TURNS)
def test_photographs_are_turned_upright(tmp_path, pixels, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(pixels, exif=exif))
    np.testing.assert_array_equal(decode_image(path), upright(pixels))
    assert image_header(path) == upright(pixels).shape


def test_resizing_keeps_a_ramp_a_ramp_and_cropping_keeps_the_middle():
    ramp = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (20, 1))[..., None]  # 20 × 60
    stretched = decode_image(encoded(ramp[..., 0]), image_size=(10, 30))[..., 0].astype(int)
    np.testing.assert_allclose(stretched[:, 1:-1], np.tile(np.arange(0, 240, 8) + 2, (10, 1))[:, 1:-1], atol=1)
    cropped = conform_images(ramp[None], image_size=(20, 20), resize="crop")[0]
    np.testing.assert_array_equal(cropped, ramp[:, 20:40])


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_and_files_are_resized_alike(pixels, channels):
    stored = pixels[..., :channels]
    file = decode_image(encoded(stored.squeeze()), image_size=(5, 6))
    np.testing.assert_array_equal(conform_images(stored[None], image_size=(5, 6))[0], file)


def test_an_unknown_conversion_of_channels_is_refused():
    with pytest.raises(UsageError, match="channels=3 was asked of images with 5 channels"):
        conform_images(np.zeros((2, 4, 4, 5), np.uint8), channels=3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF"])
def test_a_truncated_file_is_named(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / f"half.{kind.lower()}"
    path.write_bytes(encoded(noise, kind)[:1500])
    with pytest.raises(UnreadableImage, match="half") as caught:
        decode_image(path)
    copy = pickle.loads(pickle.dumps(caught.value))  # as it comes from a worker process
    assert (str(copy), copy.name, copy.reason) == (str(caught.value), caught.value.name, caught.value.reason)


def test_text_that_calls_itself_an_image_is_named(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("not an image")
    for read in (image_header, decode_image):
        with pytest.raises(UnreadableImage, match=r"notes\.png"):
            read(path)
