"""Warps and sizes beside torchvision's, whose tensors have the same places of pixels and, unfilled, the same border.

What differs: torchvision's `rotate` turns anti-clockwise and its shears are angles, the other way round; with a fill it
weighs the border by the share inside twice; its bicubic kernel for warps has a = -0.75 instead of -0.5; `resized_crop`
cuts first, so that nothing outside the window is seen; `ten_crop` takes the corners of the mirrored image, in another
order than mirrored corners. Its tensors are compared here, not its Pillow images.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torchvision_on_cpu import import_zoo

torch = pytest.importorskip("torch")
import_zoo()

import torchvision.transforms.v2 as v2  # noqa: E402  (only after the import above does it load beside a CPU torch)
import torchvision.transforms.v2.functional as F  # noqa: E402

from dl_core.augment import affine, geometric, resize  # noqa: E402

SIZE = (17, 22)
IMAGES = np.random.default_rng(0).random((1, *SIZE, 3), np.float32)
TENSORS = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
MODE = {"nearest": v2.InterpolationMode.NEAREST, "bilinear": v2.InterpolationMode.BILINEAR}
warp = jax.jit(affine.warp, static_argnames=("method", "size"))


def to_numpy(tensors):
    return tensors.numpy().transpose(0, 2, 3, 1)


def assert_alike(got, expected, method):
    if method == "nearest":  # rounding decides where a place falls between two pixels
        assert (np.abs(np.asarray(got) - expected) > 1e-6).mean() < 0.01
    else:
        np.testing.assert_allclose(got, expected, atol=2e-5)  # places up to 22 in float32, here and there


@pytest.mark.parametrize("method", MODE)
@pytest.mark.parametrize(
    ("angle", "translate", "scale", "shear"),
    [
        (25.0, [0, 0], 1.0, [0.0, 0.0]),
        (0.0, [3, -2], 1.0, [0.0, 0.0]),
        (0.0, [0, 0], 0.7, [0.0, 0.0]),
        (0.0, [0, 0], 1.0, [20.0, 0.0]),
        (0.0, [0, 0], 1.0, [0.0, -15.0]),
        (-40.0, [2, 1], 1.3, [12.0, 8.0]),
    ],
)
def test_affine_maps_are_torchvisions(method, angle, translate, scale, shear):
    expected = F.affine(TENSORS, angle, translate, scale, shear, interpolation=MODE[method], fill=None)
    slant = -np.tan(np.radians(np.array(shear, np.float32)))
    matrices = affine.compose(
        affine.shear(jnp.asarray(slant[:1]), jnp.asarray(slant[1:]), SIZE),
        affine.scaling(jnp.array([scale]), SIZE),
        affine.rotation(jnp.array([angle]), SIZE),
        affine.translation(jnp.array([float(translate[0])]), jnp.array([float(translate[1])])),
    )
    assert_alike(warp(IMAGES, matrices, method=method), to_numpy(expected), method)


@pytest.mark.parametrize("method", MODE)
def test_rotation_is_torchvisions_the_other_way_round(method):
    expected = F.rotate(TENSORS, -33.0, interpolation=MODE[method], fill=None)
    got = warp(IMAGES, affine.rotation(jnp.array([33.0]), SIZE), method=method)
    assert_alike(got, to_numpy(expected), method)


def test_a_fill_is_the_same_but_on_the_border_which_torchvision_weighs_twice():
    expected = to_numpy(F.rotate(TENSORS, -33.0, interpolation=MODE["bilinear"], fill=[0.3, 0.6, 0.9]))
    matrices = affine.rotation(jnp.array([33.0]), SIZE)
    got = np.asarray(warp(IMAGES, matrices, fill=jnp.array([0.3, 0.6, 0.9])))
    share = np.asarray(warp(np.ones_like(IMAGES), matrices))
    either = (share < 1e-6) | (share > 1 - 1e-6)
    np.testing.assert_allclose(got[either], expected[either], atol=2e-5)
    zeros = np.asarray(warp(IMAGES, matrices))
    fill = np.array([0.3, 0.6, 0.9], np.float32)
    np.testing.assert_allclose(share * zeros + (1 - share) * fill, expected, atol=2e-5)


@pytest.mark.parametrize("method", MODE)
def test_a_perspective_is_torchvisions(method):
    start = [[0, 0], [22, 0], [22, 17], [0, 17]]
    end = [[3, 1], [20, 2], [21, 14], [1, 16]]
    expected = F.perspective(TENSORS, start, end, interpolation=MODE[method], fill=None)
    matrices = affine.perspective(jnp.array([start], jnp.float32), jnp.array([end], jnp.float32))
    assert_alike(warp(IMAGES, matrices, method=method), to_numpy(expected), method)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [[8, 9], [30, 40], [25, 10]])
def test_antialiased_resizing_is_torchvisions(method, size):
    mode = v2.InterpolationMode(method)
    expected = to_numpy(F.resize(TENSORS, size, interpolation=mode, antialias=True))
    np.testing.assert_allclose(resize.resize(jnp.asarray(IMAGES), size=tuple(size), method=method), expected, atol=1e-5)


@pytest.mark.parametrize("size", [[8, 9], [30, 40]])
def test_resizing_without_antialias_is_torchvisions(size):
    expected = to_numpy(F.resize(TENSORS, size, interpolation=MODE["bilinear"], antialias=False))
    got = resize.resize(jnp.asarray(IMAGES), size=tuple(size), antialias=False)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_resized_crop_is_torchvisions_away_from_the_border_of_the_window():
    top, left, height, width = 3, 4, 12, 16
    expected = to_numpy(F.resized_crop(TENSORS, top, left, height, width, [24, 24], antialias=True))
    window = affine.translation(jnp.array([-4.0]), jnp.array([-3.0]))
    matrices = affine.compose(window, affine.scaling(jnp.array([[24 / width, 24 / height]]), (0, 0)))
    got = resize.scale_and_translate(jnp.asarray(IMAGES), matrices, size=24)
    np.testing.assert_allclose(got[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-5)


def test_random_windows_have_torchvisions_distribution():
    """Areas and shapes of 2,000 windows of either; torchvision's are rounded to whole pixels of 200."""
    torch.manual_seed(0)
    image = torch.zeros(1, 200, 200)
    drawn = [v2.RandomResizedCrop.make_params(v2.RandomResizedCrop(8), [image]) for _ in range(2000)]
    theirs = np.array([[one["width"], one["height"], one["left"], one["top"]] for one in drawn])
    matrices = np.asarray(resize.random_resized_crop_matrices(jax.random.key(0), 2000, (200, 200), size=8), np.float64)
    sides = 8 / np.diagonal(matrices, axis1=1, axis2=2)[:, :2]
    ours = np.concatenate([sides, -matrices[:, :2, 2] * sides / 8], axis=1)
    for mine, other in zip(ours.T, theirs.T, strict=True):
        places = np.linspace(0, 200, 41)
        difference = np.abs((mine[:, None] <= places).mean(axis=0) - (other[:, None] <= places).mean(axis=0)).max()
        assert difference < 0.062  # Kolmogorov–Smirnov for two samples of 2,000, 1 in 1000; the seeds are fixed


def test_five_and_ten_crops_are_torchvisions():
    crops = F.ten_crop(TENSORS, [9, 12])
    mirrored_corners = [6, 5, 8, 7, 9]  # the right corner of an image is the left one of its mirror image
    expected = np.stack([to_numpy(crops[index]) for index in [*range(5), *mirrored_corners]], axis=1)
    np.testing.assert_array_equal(geometric.ten_crop(jnp.asarray(IMAGES), size=(9, 12)), expected)


def test_moved_boxes_are_torchvisions():
    from torchvision import tv_tensors

    from dl_core.augment.targets import warp_boxes

    boxes = np.array([[2.0, 3, 9, 8], [10, 2, 20, 15], [0, 0, 4, 4]], np.float32)
    given = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=SIZE)
    expected = F.clamp_bounding_boxes(F.affine(given, 20.0, [1, 2], 0.8, [0.0, 0.0]))
    matrices = affine.compose(
        affine.scaling(jnp.array([0.8]), SIZE),
        affine.rotation(jnp.array([20.0]), SIZE),
        affine.translation(jnp.array([1.0]), jnp.array([2.0])),
    )
    got, valid = functools.partial(warp_boxes, size=SIZE)(jnp.asarray(boxes)[None], matrices)
    assert valid.all()
    np.testing.assert_allclose(got[0], expected.numpy(), atol=1e-4)
