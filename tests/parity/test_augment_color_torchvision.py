"""Colour, filters, mixing and RandAugment's operations against torchvision, Pillow and scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from dl_core.augment import automatic, color, filters, mixing
from dl_core.augment.photometric import to_float

torch = pytest.importorskip("torch")
from torchvision_on_cpu import import_zoo  # noqa: E402

import_zoo()
from torchvision.transforms import v2  # noqa: E402

functional = v2.functional
BYTES = np.random.default_rng(0).integers(0, 256, (4, 33, 30, 3), dtype=np.uint8)
BYTES[1] = BYTES[1] // 3 + 60  # a dull one
IMAGES = to_float(BYTES)
# Values below 1 after a few operations in float32, whose order may differ.
TOLERANCE = 1e-6


def nchw(images):
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)


def nhwc(tensor):
    return tensor.permute(0, 2, 3, 1).numpy()


CASES = [
    *[(color.adjust_brightness, functional.adjust_brightness, value) for value in (0.0, 0.4, 1.0, 1.9)],
    *[(color.adjust_contrast, functional.adjust_contrast, value) for value in (0.0, 0.4, 1.0, 1.9)],
    *[(color.adjust_saturation, functional.adjust_saturation, value) for value in (0.0, 0.4, 1.0, 1.9)],
    *[(color.adjust_gamma, functional.adjust_gamma, value) for value in (0.3, 1.0, 2.5)],
    *[(color.solarize, functional.solarize, value) for value in (0.0, 0.3, 1.0)],
    *[(filters.adjust_sharpness, functional.adjust_sharpness, value) for value in (0.0, 0.4, 1.0, 1.9)],
]


@pytest.mark.parametrize(("ours", "theirs", "value"), CASES)
def test_strengths_mean_what_they_mean_in_torchvision(ours, theirs, value):
    np.testing.assert_allclose(ours(IMAGES, value), nhwc(theirs(nchw(IMAGES), value)), atol=TOLERANCE)
    grey = IMAGES[..., :1]
    np.testing.assert_allclose(ours(grey, value), nhwc(theirs(nchw(grey), value)), atol=TOLERANCE)


@pytest.mark.parametrize("shift", [-0.5, -0.2, 0.0, 0.1, 0.5])
def test_hues_are_torchvisions(shift):
    ours = color.adjust_hue(IMAGES, shift)
    np.testing.assert_allclose(ours, nhwc(functional.adjust_hue(nchw(IMAGES), shift)), atol=3e-6)  # to HSV and back


@pytest.mark.parametrize("name", ["invert", "autocontrast", "equalize"])
def test_operations_without_strength_are_torchvisions(name):
    for images in (IMAGES, jax.random.uniform(jax.random.key(0), IMAGES.shape), jnp.full_like(IMAGES, 0.3)):
        theirs = nhwc(getattr(functional, name)(nchw(images)))
        if name == "equalize":  # theirs makes bytes of channels that it leaves as they are, too
            theirs = np.where(np.abs(theirs - np.asarray(images)) < 1 / 255, np.asarray(images), theirs)
            ours = np.asarray(color.equalize(images))
            ours = np.where(np.abs(ours - np.asarray(images)) < 1 / 255, np.asarray(images), ours)
            np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
        else:
            np.testing.assert_allclose(getattr(color, name)(images), theirs, atol=TOLERANCE)


def test_grayscale_is_torchvisions():
    theirs = nhwc(functional.rgb_to_grayscale(nchw(IMAGES), num_output_channels=3))
    np.testing.assert_allclose(color.grayscale(IMAGES), theirs, atol=TOLERANCE)


@pytest.mark.parametrize("bits", range(9))
def test_posterized_bytes_are_torchvisions_and_pillows(bits):
    ours = np.round(np.asarray(color.posterize(IMAGES, bits)) * 255).astype(np.uint8)
    np.testing.assert_array_equal(ours, nhwc(functional.posterize(nchw(BYTES), bits)))
    if bits:
        np.testing.assert_array_equal(ours[0], ImageOps.posterize(Image.fromarray(BYTES[0]), bits))


@pytest.mark.parametrize(("size", "sigma"), [(3, 0.5), (5, 1.0), (9, 2.5)])
def test_blurs_are_torchvisions(size, sigma):
    ours = filters.gaussian_blur(IMAGES, sigma, kernel_size=size)
    np.testing.assert_allclose(ours, nhwc(functional.gaussian_blur(nchw(IMAGES), size, [sigma])), atol=TOLERANCE)


def test_equalized_inverted_and_solarized_bytes_are_pillows():
    picture = Image.fromarray(BYTES[1])
    levels = lambda images: np.round(np.asarray(images[1]) * 255).astype(np.uint8)
    np.testing.assert_array_equal(levels(color.equalize(IMAGES)), ImageOps.equalize(picture))
    np.testing.assert_array_equal(levels(color.invert(IMAGES)), ImageOps.invert(picture))
    np.testing.assert_array_equal(levels(color.solarize(IMAGES, 100 / 255)), ImageOps.solarize(picture, 100))


@pytest.mark.parametrize("factor", [0.3, 1.6])
@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color", "Sharpness"])
def test_pillow_differs_by_its_rounding_to_bytes(name, factor):
    ours = {
        "Brightness": color.adjust_brightness,
        "Contrast": color.adjust_contrast,
        "Color": color.adjust_saturation,
        "Sharpness": filters.adjust_sharpness,
    }[name](IMAGES, factor)
    theirs = np.asarray(getattr(ImageEnhance, name)(Image.fromarray(BYTES[0])).enhance(factor))
    # It rounds down in the end, and before that what is blended with; its grey rounds otherwise, too.
    np.testing.assert_allclose(np.asarray(ours[0]) * 255, theirs, atol=2)


def test_filters_are_scikit_images():
    skimage = pytest.importorskip("skimage")
    blurred = skimage.filters.gaussian(np.asarray(IMAGES[0]), 1.0, mode="mirror", truncate=4, channel_axis=-1)
    np.testing.assert_allclose(filters.gaussian_blur(IMAGES, 1.0, kernel_size=9)[0], blurred, atol=TOLERANCE)
    gamma = skimage.exposure.adjust_gamma(np.asarray(IMAGES[0]), 1.7)
    np.testing.assert_allclose(color.adjust_gamma(IMAGES, 1.7)[0], gamma, atol=TOLERANCE)


def test_mixtures_and_erased_rectangles_are_torchvisions():
    labels = jnp.eye(4)
    params = {"labels": None, "batch_size": 4, "lam": 0.3}
    theirs = v2.MixUp(num_classes=4).transform(nchw(IMAGES), params)
    mixed = mixing.mix(IMAGES, labels, 0.3)
    np.testing.assert_allclose(mixed.images, nhwc(theirs), atol=TOLERANCE)
    their_labels = v2.MixUp(num_classes=4)._mixup_label(torch.arange(4), lam=0.3)
    np.testing.assert_allclose(mixed.labels, their_labels, atol=1e-7)
    at = lambda value: jnp.full(4, value)
    erased = mixing.erase(IMAGES, at(5), at(7), at(15), at(20), fill=0.25)
    np.testing.assert_array_equal(erased, nhwc(functional.erase(nchw(IMAGES), 5, 7, 10, 13, torch.tensor(0.25))))


@pytest.mark.parametrize("wide", [False, True])
def test_magnitudes_are_torchvisions(wide):
    policy = v2.TrivialAugmentWide if wide else v2.RandAugment
    space = policy._AUGMENTATION_SPACE
    assert [name.lower() for name in space] == [name.replace("_", "") for name in automatic.OPERATIONS]
    for row, (name, (values, signed)) in zip(automatic.magnitudes(31, (33, 30), wide=wide), space.items(), strict=True):
        theirs = values(31, 33, 30)
        np.testing.assert_allclose(row, 0 if theirs is None else theirs.numpy(), atol=1e-5, err_msg=name)
        own = {"ShearX": "shear_x", "ShearY": "shear_y", "TranslateX": "translate_x", "TranslateY": "translate_y"}
        assert signed == (own.get(name, name.lower()) in automatic._SIGNED)


@pytest.mark.parametrize("number", range(14))
def test_the_operations_of_rand_augment_are_torchvisions(number):
    name = list(v2.RandAugment._AUGMENTATION_SPACE)[number]
    magnitude = float(automatic.magnitudes(31, (33, 30))[number, 9])
    plan = automatic.Plan(jnp.full(4, number), jnp.full(4, magnitude, jnp.float32))
    ours = np.asarray(jax.jit(automatic.apply_plan)(IMAGES, plan))
    theirs = nhwc(v2.RandAugment()._apply_image_or_video_transform(
        nchw(BYTES), name, magnitude, interpolation=v2.InterpolationMode.NEAREST, fill={torch.Tensor: 0.0}
    ))  # fmt: skip
    difference = np.abs(ours * 255 - theirs)
    if 1 <= number <= 5:  # where the nearest of two pixels is a matter of rounding
        assert (difference.max(axis=-1) > 0.5).mean() < 0.002
    else:  # theirs is rounded down to bytes in the end, and its grey before
        assert difference.max() < 2.01
