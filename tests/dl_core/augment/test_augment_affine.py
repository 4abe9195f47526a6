"""Matrices and the warp: what moves where, exactly where it can be exact, image by image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config as annotations
from PIL import Image

from dl_core.augment import affine
from dl_core.augment.policies import per_image_keys
from dl_core.errors import UsageError

KEY = jax.random.key(0)
SIZE = (12, 16)
METHODS = ("nearest", "bilinear", "bicubic")
rotation, shear, scaling = (
    jax.jit(function, static_argnames="size") for function in (affine.rotation, affine.shear, affine.scaling)
)
translation, compose, inverse = jax.jit(affine.translation), jax.jit(affine.compose), jax.jit(affine.inverse)
warp = jax.jit(affine.warp, static_argnames=("method", "fill", "size"))
random_affine_matrices = jax.jit(
    affine.random_affine_matrices,
    static_argnums=(1, 2),
    static_argnames=("degrees", "translate", "scale", "shear"),
)
STRONG = {"degrees": 40.0, "translate": (0.2, 0.1), "scale": (0.7, 1.4), "shear": (0.3, 0.2)}


@functools.cache
def images(batch=4, channels=2):
    """Smooth in the middle and different everywhere: sums of a few waves."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    phase = np.arange(batch * channels).reshape(batch, 1, 1, channels)
    waves = np.sin(0.35 * x[None, ..., None] + phase) + np.cos(0.3 * y[None, ..., None] - 2 * phase)
    return jnp.asarray(waves, jnp.float32)


def moved(matrices, points):
    """Points [n, 2] moved by each matrix, by the definition."""
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    at = np.einsum("bij,nj->bni", np.asarray(matrices, np.float64), homogeneous)
    return at[..., :2] / at[..., 2:]


CENTRE, RIGHT, BELOW = [8, 6], [11, 6], [8, 8]  # 3 to the right of the centre of SIZE, 2 below


@pytest.mark.parametrize(
    ("matrices", "centre", "right", "below"),
    [
        (rotation(jnp.array([90.0]), SIZE), [8, 6], [8, 9], [6, 6]),  # clockwise on the screen
        (shear(jnp.array([0.5]), jnp.array([0.0]), SIZE), [8, 6], [11, 6], [9, 8]),
        (shear(jnp.array([0.0]), jnp.array([0.5]), SIZE), [8, 6], [11, 7.5], [8, 8]),
        (scaling(jnp.array([2.0]), SIZE), [8, 6], [14, 6], [8, 10]),
        (scaling(jnp.array([[2.0, -1.0]]), SIZE), [8, 6], [14, 6], [8, 4]),
        (translation(jnp.array([2.0]), jnp.array([-1.0])), [10, 5], [13, 5], [10, 7]),
    ],
)
def test_each_matrix_moves_points_as_its_name_says(matrices, centre, right, below):
    got = moved(matrices, np.array([CENTRE, RIGHT, BELOW]))[0]
    np.testing.assert_allclose(got, [centre, right, below], atol=1e-5)  # cos 90° in float32


def test_steps_are_composed_in_the_order_in_which_they_are_done():
    turn, shift = rotation(jnp.array([90.0]), SIZE), translation(jnp.array([2.0]), jnp.array([0.0]))
    np.testing.assert_allclose(moved(compose(turn, shift), np.array([RIGHT]))[0], [[10, 9]], atol=1e-5)
    np.testing.assert_allclose(moved(compose(shift, turn), np.array([RIGHT]))[0], [[8, 11]], atol=1e-5)
    np.testing.assert_allclose(compose(turn, shift), shift @ turn, atol=1e-6)


def test_shear_keeps_areas_and_the_order_of_torchvision():
    matrix = np.asarray(shear(jnp.array([0.4]), jnp.array([0.7]), SIZE))[0]
    np.testing.assert_allclose(matrix[:2, :2], [[1, 0.4], [0.7, 1 + 0.28]], rtol=1e-6)  # x first, then y
    np.testing.assert_allclose(np.linalg.det(matrix), 1, rtol=1e-5)


def test_a_perspective_takes_the_four_points_to_the_four_others():
    start = jnp.array([[[0.0, 0], [16, 0], [16, 12], [0, 12]]])
    end = jnp.array([[[1.0, 2], [14, 1], [15, 10], [3, 12]]])
    matrices = affine.perspective(start, end)
    np.testing.assert_allclose(moved(matrices, np.asarray(start[0]))[0], end[0], atol=1e-4)  # solved in float32
    np.testing.assert_array_equal(affine.random_perspective_matrices(KEY, 3, SIZE).shape, (3, 3, 3))
    still = affine.random_perspective_matrices(KEY, 3, SIZE, distortion=0.0)
    np.testing.assert_allclose(still, np.broadcast_to(np.eye(3), (3, 3, 3)), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_random_perspective_moves_corners_inwards_and_no_further_than_asked(seed):
    matrices = affine.random_perspective_matrices(jax.random.key(seed), 50, SIZE, distortion=0.5)
    corners = moved(matrices, np.array([[0, 0], [16, 0], [16, 12], [0, 12]]))
    inwards = np.abs(corners - np.array([[0, 0], [16, 0], [16, 12], [0, 12]]))
    assert inwards[..., 0].max() < 4.001  # a quarter of the width
    assert inwards[..., 1].max() < 3.001
    assert (corners > -1e-3).all()
    assert (corners < np.array([16, 12]) + 1e-3).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_identity_changes_nothing_to_the_last_bit(method):
    still = random_affine_matrices(KEY, 4, SIZE)
    np.testing.assert_array_equal(still, np.broadcast_to(np.eye(3), (4, 3, 3)))
    np.testing.assert_array_equal(warp(images(), still, method=method, fill=7.0), images())


@pytest.mark.parametrize("method", METHODS)
def test_whole_pixel_shifts_and_mirror_images_are_exact(method):
    shift = translation(jnp.full(4, 3.0), jnp.full(4, -2.0))
    expected = np.full(images().shape, 7.0, np.float32)
    expected[:, :-2, 3:] = np.asarray(images())[:, 2:, :-3]
    np.testing.assert_array_equal(warp(images(), shift, method=method, fill=7.0), expected)
    mirror = scaling(jnp.tile(jnp.array([[-1.0, 1.0]]), (4, 1)), SIZE)
    np.testing.assert_array_equal(warp(images(), mirror, method=method, fill=7.0), np.asarray(images())[:, :, ::-1])


@pytest.mark.parametrize("method", METHODS)
def test_a_quarter_turn_is_numpys(method):
    square = images()[:, :, :12]
    turned = warp(square, rotation(jnp.full(4, 90.0), (12, 12)), method=method)
    # cos 90° is -4e-8 in float32: places are off by 1e-6 pixels, and a border pixel by as much of the fill
    np.testing.assert_allclose(turned, np.rot90(square, -1, axes=(1, 2)), atol=1e-5)


@pytest.mark.parametrize(("method", "error"), [("bilinear", 0.03), ("bicubic", 0.004)])
def test_the_inverse_matrix_undoes_a_warp_in_the_interior(method, error):
    """Twice the error of interpolating waves of 0.35 and 0.3 radians a pixel: h² f'' / 8 = 0.013 each for a line."""
    matrices = random_affine_matrices(KEY, 4, SIZE, degrees=10.0, translate=(0.05, 0.05), shear=(0.1, 0.1))
    back = warp(warp(images(), matrices, method=method), inverse(matrices), method=method)
    np.testing.assert_allclose(back[:, 4:-4, 4:-4], images()[:, 4:-4, 4:-4], atol=2 * error)
    np.testing.assert_allclose(compose(matrices, inverse(matrices)), np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-5)


def test_a_linear_ramp_is_moved_without_error():
    """Bilinear and bicubic interpolation reproduce a plane, so the warp of one is known everywhere inside."""
    y, x = jnp.meshgrid(jnp.arange(12) + 0.5, jnp.arange(16) + 0.5, indexing="ij")
    plane = jnp.broadcast_to((2 * x - 3 * y)[None, ..., None], (4, 12, 16, 1))
    matrices = random_affine_matrices(KEY, 4, SIZE, **STRONG)
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    source = moved(inverse(matrices), points).reshape(4, 12, 16, 2)
    expected = 2 * source[..., 0] - 3 * source[..., 1]
    inside = ((source > 2) & (source < np.array([14, 10]))).all(axis=-1)
    for method in ("bilinear", "bicubic"):
        got = np.asarray(warp(plane, matrices, method=method))[..., 0]
        np.testing.assert_allclose(got[inside], expected[inside], atol=1e-4)  # numbers of about 30 in float32


def test_a_perspective_warp_moves_pixels_to_where_its_matrix_says():
    dots = jnp.zeros((1, *SIZE, 1)).at[0, 6, 9].set(1.0)
    corners = jnp.array([[[0.0, 0], [16, 0], [16, 12], [0, 12]]])
    matrices = affine.perspective(corners, corners + jnp.array([[[2.0, 1], [-1, 2], [-2, -1], [1, -2]]]))
    picture = np.asarray(warp(dots, matrices))[0, ..., 0]
    row, column = np.mgrid[:12, :16] + 0.5
    centre = [(picture * column).sum() / picture.sum(), (picture * row).sum() / picture.sum()]
    np.testing.assert_allclose(centre, moved(matrices, np.array([[9.5, 6.5]]))[0, 0], atol=0.25)  # spread over 2 pixels


@pytest.mark.parametrize("method", ["nearest", "bilinear"])
def test_pillow_moves_the_interior_alike(method):
    """Pillow asks for the inverse; half a pixel inside the border it repeats the border, where here the fill blends."""
    matrices = random_affine_matrices(KEY, 4, SIZE, **STRONG)
    got = warp(images(), matrices, method=method, fill=7.0)
    inside = warp(jnp.ones_like(images()), matrices, method="bilinear") > 1 - 1e-6
    assert inside.mean() > 0.4
    for picture, matrix, ours, compared in zip(images(), inverse(matrices), got, inside, strict=True):
        theirs = Image.fromarray(np.asarray(picture[..., 0])).transform(
            SIZE[::-1],
            Image.Transform.AFFINE,
            tuple(np.asarray(matrix, np.float64)[:2].ravel()),
            getattr(Image.Resampling, method.upper()),
        )
        compared = np.asarray(compared[..., 0])
        np.testing.assert_allclose(np.asarray(ours)[compared, 0], np.asarray(theirs)[compared], atol=1e-5)


def test_outside_is_the_fill_of_each_channel_and_the_border_blends_into_it():
    ones = jnp.ones((1, 4, 4, 2))
    half = translation(jnp.array([0.5]), jnp.array([0.0]))
    got = np.asarray(affine.warp(ones, half, fill=jnp.array([3.0, -1.0])))
    np.testing.assert_allclose(got[0, 0, :, 0], [2, 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(got[0, 0, :, 1], [0, 1, 1, 1], atol=1e-6)
    away = translation(jnp.array([50.0]), jnp.array([0.0]))
    np.testing.assert_array_equal(affine.warp(ones, away, fill=(3.0, -1.0))[..., 1], -1)


def test_masks_keep_their_dtype_and_gain_no_values():
    masks = jnp.arange(4 * 12 * 16).reshape(4, 12, 16, 1)
    matrices = random_affine_matrices(KEY, 4, SIZE, **STRONG)
    for dtype in (jnp.uint8, jnp.int32, jnp.bool_):
        got = warp(masks.astype(dtype), matrices, method="nearest")
        assert got.dtype == dtype
    got = np.asarray(warp(masks, matrices, method="nearest", fill=-1))
    assert set(np.unique(got)) <= {-1, *range(4 * 12 * 16)}
    ramp = np.asarray(warp(masks.astype(jnp.float32), matrices))
    # interior neighbours differ by at most one row and one column: 16 + 1
    assert (np.abs(got - ramp)[got >= 0] <= 17 / 2 + 1).mean() > 0.9


def test_half_precision_images_are_moved_at_full_precision():
    matrices = random_affine_matrices(KEY, 4, SIZE, **STRONG)
    got = warp(images().astype(jnp.bfloat16), matrices)
    assert got.dtype == jnp.bfloat16
    expected = warp(images().astype(jnp.bfloat16).astype(jnp.float32), matrices).astype(jnp.bfloat16)
    np.testing.assert_array_equal(got, expected)


def test_the_output_may_have_another_size():
    cut = translation(jnp.full(4, -5.0), jnp.full(4, -2.0))
    np.testing.assert_array_equal(warp(images(), cut, size=(7, 9)), images()[:, 2:9, 5:14])
    larger = np.asarray(warp(images(), cut, size=(20, 30), fill=9.0))
    np.testing.assert_array_equal(larger[:, :10, :11], images()[:, 2:, 5:])
    assert (larger[:, 11:] == 9).all()


def test_gradients_reach_images_and_matrices():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        picture, weights = jnp.asarray(rng.normal(size=(1, 6, 8, 1))), jnp.asarray(rng.normal(size=(1, 6, 8, 1)))
        loss = jax.jit(lambda image, angle: (weights * affine.warp(image, rotation(angle, (6, 8)))).sum())
        angle, step = jnp.array([25.0]), jnp.array([1e-6])
        to_image, to_angle = jax.jit(jax.grad(loss, argnums=(0, 1)))(picture, angle)
        # the warp is linear in the image: the gradient's product with the image is the value itself
        np.testing.assert_allclose((to_image * picture).sum(), loss(picture, angle), rtol=1e-10)
        numeric = (loss(picture, angle + step) - loss(picture, angle - step)) / 2e-6
        np.testing.assert_allclose(to_angle[0], numeric, rtol=1e-6)  # 1e-16 of rounding over a step of 1e-6


def test_compiled_mapped_and_plain_agree():
    matrices = random_affine_matrices(KEY, 4, SIZE, **STRONG)
    plain = affine.warp(images(), matrices)
    stacked = jax.jit(jax.vmap(affine.warp))(images()[:, None], matrices[:, None])[:, 0]
    one_by_one = [warp(images()[i : i + 1], matrices[i : i + 1])[0] for i in range(4)]
    for other in (warp(images(), matrices), stacked, jnp.stack(one_by_one)):
        np.testing.assert_allclose(other, plain, atol=1e-5)  # places rounded differently by 1e-6 pixels


RANDOM = {
    "rotate": functools.partial(affine.random_rotate, degrees=30.0),
    "shear": functools.partial(affine.random_shear, shear=(0.3, 0.1)),
    "scale": functools.partial(affine.random_scale, scale=(0.5, 2.0)),
    "affine": functools.partial(affine.random_affine, degrees=30.0, translate=(0.1, 0.1), method="nearest"),
}


@pytest.mark.parametrize("name", RANDOM)
def test_the_result_depends_on_the_key_and_the_row_alone(name):
    augment = jax.jit(RANDOM[name])
    whole, keys = augment(KEY, images()), per_image_keys(KEY, 4)
    pieces = [augment(keys[rows], images()[rows]) for rows in (slice(0, 1), slice(1, 4))]
    np.testing.assert_allclose(jnp.concatenate(pieces), whole, atol=1e-5)
    same = augment(KEY, jnp.broadcast_to(images()[:1], images().shape))
    assert len(np.unique(np.asarray(same).reshape(4, -1), axis=0)) == 4  # every row has numbers of its own


def test_a_batch_divided_over_devices_stays_divided():
    batch = jnp.tile(images(), (4, 1, 1, 1))
    augment = jax.jit(RANDOM["rotate"])
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    divided = augment(KEY, jax.device_put(batch, sharding))
    assert divided.sharding.is_equivalent_to(sharding, divided.ndim)
    np.testing.assert_allclose(divided, augment(KEY, batch), atol=1e-5)


def test_random_numbers_fill_their_ranges():
    numbers = np.asarray(random_affine_matrices(KEY, 4000, SIZE, degrees=30.0, scale=(0.5, 2.0)), np.float64)
    factor = np.sqrt(np.linalg.det(numbers))
    angle = np.degrees(np.arctan2(numbers[:, 1, 0], numbers[:, 0, 0]))
    for drawn, low, high in ((factor, 0.5, 2.0), (angle, -30.0, 30.0)):
        share = np.sort((drawn - low) / (high - low))
        assert share[0] > -1e-4
        assert share[-1] < 1 + 1e-4
        assert np.abs(share - np.arange(4000) / 4000).max() < 0.031  # Kolmogorov–Smirnov, 1 in 1000; the seed is fixed
    shifts = np.asarray(random_affine_matrices(KEY, 4000, SIZE, translate=(0.25, 0.5)))[:, :2, 2]
    np.testing.assert_allclose(np.abs(shifts).max(axis=0), [4, 6], rtol=0.01)  # a quarter of 16, a half of 12


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**31 - 1), strength=st.floats(0, 1), fill=st.sampled_from([0.0, 1.0]))
def test_a_bilinear_warp_stays_within_the_values_it_was_given(seed, strength, fill):
    rng = np.random.default_rng(seed)
    matrices = np.eye(3) + strength * rng.normal(size=(2, 3, 3)) * np.array([[0.5, 0.5, 8], [0.5, 0.5, 6], [0, 0, 0]])
    if np.abs(np.linalg.det(matrices)).min() < 1e-3:
        return  # hardly to be inverted in float32
    picture = rng.random((2, *SIZE, 1), np.float32)
    got = np.asarray(warp(jnp.asarray(picture), jnp.asarray(matrices, jnp.float32), fill=fill))
    assert got.min() >= min(picture.min(), fill) - 1e-5  # weights sum to 1 up to rounding
    assert got.max() <= max(picture.max(), fill) + 1e-5


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_what_cannot_be_warped_is_refused(data):
    picture, matrices, options = np.zeros((2, 3, 4, 1), np.float32), np.tile(np.eye(3, dtype=np.float32), (2, 1, 1)), {}
    match data.draw(st.integers(0, 6)):
        case 0:
            picture = picture[data.draw(st.sampled_from([0, ..., slice(0, 1)]))].reshape(-1, 4)
        case 1:
            matrices = np.tile(matrices[0], (data.draw(st.sampled_from([1, 3, 7])), 1, 1))
        case 2:
            matrices[data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1))] = data.draw(
                st.sampled_from([0.0, np.nan, np.inf])
            )
        case 3:
            options["method"] = data.draw(st.text(max_size=6).filter(lambda name: name not in METHODS))
        case 4:
            picture = picture.astype(data.draw(st.sampled_from([np.uint8, np.int32, bool])))
        case 5:
            options["size"] = data.draw(st.sampled_from([(0, 4), (4, -1), (-3, -3)]))
        case 6:
            options["fill"] = (0.0,) * data.draw(st.sampled_from([2, 3, 5]))
    annotations.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UsageError):
            affine.warp(jnp.asarray(picture), jnp.asarray(matrices), **options)
    finally:
        annotations.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"degrees": -1.0}, "must not be negative, got -1"),
        ({"shear": (0.1, -0.1)}, "must not be negative"),
        ({"scale": (0.0, 1.0)}, "0 < smallest <= largest"),
        ({"scale": (2.0, 1.0)}, "0 < smallest <= largest"),
    ],
)
def test_strengths_out_of_range_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        affine.random_affine_matrices(KEY, 2, SIZE, **options)
    with pytest.raises(UsageError, match=r"distortion must lie in \[0, 1\), got 1"):
        affine.random_perspective_matrices(KEY, 2, SIZE, distortion=1.0)
