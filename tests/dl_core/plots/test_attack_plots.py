"""Pictures of attacks: one stated factor around mid-grey, curves with intervals, paths from the first success."""

import io

import matplotlib
import numpy as np
import pytest

from dl_core.errors import UsageError
from dl_core.plots.attacks import accuracy_curves, adversarial_grid, attack_path, loss_surface
from dl_core.plots.style import GREY

EPS = np.array([0, 0.1, 0.2])
STEPS = np.linspace(-0.1, 0.3, 5)


@pytest.fixture
def images():
    return np.random.default_rng(0).uniform(0.3, 0.7, (3, 6, 8, 3)).astype(np.float32)


def rendered(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    buffer.seek(0)
    return matplotlib.image.imread(buffer)[..., :3]


def cells(figure, column):
    """The pictures of a column of one example after the other, top to bottom."""
    by_place = sorted(figure.axes, key=lambda axes: (round(-axes.get_position().y0, 3), axes.get_position().x0))
    return [axes.images[0].get_array() for axes in by_place[column::3]]


def test_the_perturbation_is_signed_around_mid_grey_and_its_factor_written(images):
    change = np.zeros_like(images)
    change[:, 0, 0, 0], change[:, 1, 1, 2] = 0.04, -0.02
    figure = adversarial_grid(images, images + change, ["cat"] * 3, ["dog\n99 %"] * 3, per_row=1)
    titles = {axes.get_title("left") for axes in figure.axes}
    assert titles == {"clean", "change × 10", "adversarial", ""}  # 20 × 0.04 would leave the range
    for picture in cells(figure, 1):
        assert list(picture[3, 3]) == [128] * 3
        np.testing.assert_allclose(picture[0, 0], [229.5, 128, 128], atol=0.51)  # 255 · (0.5 + 10 · 0.04)
        np.testing.assert_allclose(picture[1, 1], [128, 128, 76.5], atol=0.51)
    for picture, image in zip(cells(figure, 0), images, strict=True):
        np.testing.assert_allclose(picture, image * 255, atol=0.51)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts.count("cat") == texts.count("dog\n99 %") == 3
    assert rendered(figure).min() < 0.5


def test_the_factor_can_be_given_and_the_bounds_are_those_of_the_images(images):
    shifted = 2 * images - 1
    figure = adversarial_grid(shifted, shifted + 0.02, magnify=4, bounds=(-1.0, 1.0))
    assert "change × 4" in {axes.get_title("left") for axes in figure.axes}
    assert (figure.axes[3].images[0].get_array() == 138).all()  # 255 · (0.5 + 4 · 0.01)


@pytest.mark.parametrize(("largest", "factor"), [(0.1, 5), (8 / 255, 10), (0.5, 1), (1.0, 1), (0.0, 1), (0.004, 100)])
def test_the_factor_is_round_and_keeps_every_change_in_range(largest, factor):
    images = np.zeros((1, 2, 2, 1), np.float32)
    figure = adversarial_grid(images, images + np.float32(largest))
    assert figure.axes[1].get_title("left") == f"change × {factor}"


def test_no_two_cells_overlap_and_all_lie_on_the_page(images):
    figure = adversarial_grid(images, images, ["a\nb"] * 3, per_row=2)
    assert len(figure.axes) == 9
    boxes = [axes.get_position() for axes in figure.axes]
    for index, one in enumerate(boxes):
        assert 0 <= one.x0 < one.x1 <= 1
        assert 0 <= one.y0 < one.y1 <= 1
        for other in boxes[:index]:
            assert one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0


def test_curves_have_bands_names_at_their_ends_and_a_line_for_chance():
    standard = (EPS, np.array([0.9, 0.2, 0]), np.array([0.85, 0.1, 0]), np.array([0.95, 0.3, 0.05]))
    figure = accuracy_curves({"standard": standard, "hardened": (EPS, np.array([0.8, 0.7, 0.6]))}, chance=0.1)
    (axes,) = figure.axes
    guessing, first, second = axes.lines
    assert guessing.get_color() == GREY
    np.testing.assert_allclose(guessing.get_ydata(), 0.1)
    np.testing.assert_allclose(first.get_ydata(), standard[1])
    assert first.get_linestyle() != second.get_linestyle()
    (band,) = axes.collections
    vertices = band.get_paths()[0].vertices
    at_middle = vertices[np.isclose(vertices[:, 0], 0.1), 1]
    np.testing.assert_allclose([at_middle.min(), at_middle.max()], [0.1, 0.3])
    assert {text.get_text() for text in axes.texts} == {"chance", "standard", "hardened"}
    assert axes.get_xlim() == (0, 0.2)
    certified = accuracy_curves({"σ = 0.25": (EPS, np.array([0.9, np.nan, np.nan]))}, x_label="certified radius")
    assert certified.axes[0].get_xlabel() == "certified radius"
    assert rendered(certified).min() < 0.5


def test_a_path_begins_where_half_of_the_images_have_an_adversarial_one():
    distances = np.array([[np.inf, 4.0, 1], [np.nan, np.inf, 2], [3, 2, 0.5]])
    figure = attack_path({"boundary": (np.array([1, 10, 100]), distances)}, norm="linf")
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[10, 4], [100, 1]])
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.get_ylabel() == "linf distance"
    assert rendered(figure).min() < 0.5


def test_a_path_without_any_success_is_an_empty_page():
    figure = attack_path({"boundary": (np.array([1, 10]), np.full((3, 2), np.inf))})
    assert not len(figure.axes[0].lines[0].get_xdata())
    rendered(figure)


def test_the_surface_has_the_image_at_zero_and_the_line_where_the_prediction_changes():
    loss = np.repeat(np.exp(5 * STEPS)[None], 4, axis=0)
    figure = loss_surface(loss, STEPS, np.linspace(-1, 1, 4), margin=np.log(loss) - 0.5)
    axes, bar = figure.axes
    np.testing.assert_allclose(axes.images[0].get_extent(), (-0.15, 0.35, -4 / 3, 4 / 3))
    marker = next(line for line in axes.lines if line.get_marker() == "o")
    np.testing.assert_array_equal(marker.get_xydata(), [[0, 0]])
    (crossing,) = [path.vertices for path in axes.collections[0].get_paths()]
    np.testing.assert_allclose(crossing[:, 0], 0.1, atol=1e-6)  # log loss = 5 · step
    assert bar.get_ylabel() == "loss"
    assert rendered(figure).min() < 0.5


def test_a_flat_surface_and_one_with_nan_are_drawn():
    flat = np.ones((3, 5))
    assert rendered(loss_surface(flat, STEPS, np.arange(3), margin=-flat)).min() < 0.5
    flat[0, 0] = np.nan
    assert rendered(loss_surface(flat, STEPS, np.arange(3))).min() < 0.5


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda x: adversarial_grid(x, x[:2]), r"got \[3, 6, 8, 3\] and \[2, 6, 8, 3\]"),
        (lambda x: adversarial_grid(x[:0], x[:0]), "at least one image"),
        (lambda x: adversarial_grid(x[..., :2], x[..., :2]), "1 or 3"),
        (lambda x: adversarial_grid(x, x, ["one"]), "one of captions for each of the 3 images"),
        (lambda x: adversarial_grid(x, x, (), ["one"]), "one of adversarial_captions"),
        (lambda x: adversarial_grid(x, x, magnify=0), "magnify positive"),
        (lambda x: adversarial_grid(x, x, per_row=0), "per_row must be at least 1"),
        (lambda _: accuracy_curves({}), "at least one"),
        (lambda _: accuracy_curves({"a": (EPS, EPS, EPS)}), r"'a' must be \(eps, accuracy\)"),
        (lambda _: accuracy_curves({"a": (EPS, EPS[:2])}), r"got shapes \[\[3\], \[2\]\]"),
        (lambda _: attack_path({}), "at least one method"),
        (lambda _: attack_path({"a": (EPS, EPS)}), r"\[images, 3\], got \[3\]"),
        (lambda _: loss_surface(np.ones((3, 4)), STEPS, np.arange(3)), r"= \[3, 5\].*got \[3, 4\]"),
        (lambda _: loss_surface(np.ones((3, 5)), STEPS, np.arange(3), margin=np.ones(5)), r"\[3, 5\] and \[5\]"),
        (lambda _: loss_surface(np.ones((1, 5)), STEPS, np.arange(1)), "at least 2"),
    ],
)
def test_what_cannot_be_drawn_is_refused(images, draw, words):
    with pytest.raises(UsageError, match=words):
        draw(images)
