"""Figures: what is drawn is what was given; odd inputs are drawn too; nothing of matplotlib's global state changes."""

import io

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from dl_core import plots
from dl_core.errors import UsageError


def render(figure):
    """The figure as RGB pixels [height, width, 3]; any warning of matplotlib is an error here."""
    assert isinstance(figure, Figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    buffer.seek(0)
    return matplotlib.image.imread(buffer)[..., :3]


def texts(figure):
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def test_learning_curves_show_both_splits_with_the_means_since_the_last_validation():
    x, y = np.arange(1, 11) / 5, np.arange(10, 0, -1.0)
    figure = plots.learning_curves(x, y, np.array([1.0, 2.0]), np.array([9.0, 4.0]), mark=(2.0, "lowest"))
    lines = figure.axes[0].lines
    np.testing.assert_array_equal(lines[0].get_xydata(), np.stack([x, y], axis=1))
    np.testing.assert_array_equal(lines[1].get_xydata(), [[1, 8], [2, 3]])  # means of 10..6 and of 5..1
    np.testing.assert_array_equal(lines[2].get_xydata(), [[1, 9], [2, 4]])
    assert {"training 3.00", "validation 4.00", "lowest", "epoch", "loss"} <= set(texts(figure))


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ([], []),
        ([1.0], []),
        ([], [1.0]),
        ([1.0, np.nan, np.nan], [1.0, np.inf]),
        ([np.nan] * 3, [np.nan]),
        ([2.0] * 9, [2.0] * 9),
    ],
)
@pytest.mark.parametrize("log_scale", [False, True])
def test_learning_curves_of_odd_runs_are_drawn(train, validation, log_scale):
    figure = plots.learning_curves(
        np.arange(len(train)), np.array(train), np.arange(len(validation)), np.array(validation), log_scale=log_scale
    )
    assert render(figure).min() < 0.5


def test_learning_rate_and_norms_are_drawn_as_given():
    steps, values = np.arange(20), np.linspace(1e-3, 0, 20)
    figure = plots.learning_rate_curve(steps, values)
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), values)
    figure = plots.norms(jnp.arange(20), jnp.ones(20), jnp.zeros(20))  # an update of zero has no logarithm
    assert "gradient 1.00" in texts(figure)
    render(figure)


def test_a_small_confusion_matrix_says_every_count_and_a_large_one_only_shows_it():
    matrix = np.array([[50, 0], [7, 1234]])
    assert {"50", "7", "1234", "cat", "dog", "true", "predicted"} <= set(
        texts(plots.confusion_matrix(matrix, ["cat", "dog"]))
    )
    large = np.diag(np.arange(100))
    figure = plots.confusion_matrix(large, [f"c{k}" for k in range(100)])
    assert {f"c{k}" for k in range(100)} <= set(texts(figure))
    assert "57" not in texts(figure)
    assert figure.get_size_inches().max() < 12


def test_a_row_of_the_confusion_matrix_without_examples_is_white():
    figure = plots.confusion_matrix(jnp.array([[0, 0], [1, 1]]), ["absent", "present"])
    shown = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(shown, [[0, 0], [0.5**0.5, 0.5**0.5]])


def corner(rise):
    return np.array([0, rise, 1.0]), np.array([0, 1.0, 1.0])


@pytest.mark.parametrize("draw", [plots.roc_curves, plots.precision_recall_curves])
def test_ranking_curves_name_the_lowest_three_and_leave_out_what_is_undefined(draw):
    areas = np.array([0.9, 0.5, 0.7, np.nan, 0.8, 0.95])
    names = [f"class {k}" for k in range(6)]
    words = texts(draw([corner(0.1)] * 6, names, areas))
    assert [word for word in words if word.startswith("class")] == [
        "class 1  0.5000",
        "class 2  0.7000",
        "class 4  0.8000",
    ]
    assert "mean of 5 classes  0.7700" in words
    assert not any("framed" in word for word in words)
    assert "the framed corner" in texts(draw([corner(1e-4)] * 2, names[:2], np.array([0.999, 1.0])))
    render(draw([], [], np.zeros(0)))
    render(draw([corner(np.nan)], ["nothing"], np.array([np.nan])))


def test_the_mean_roc_curve_lies_between_the_curves():
    figure = plots.roc_curves([corner(0.2), corner(0.6)], ["a", "b"], np.array([0.9, 0.7]))
    x, y = figure.axes[0].lines[-1].get_data()
    np.testing.assert_allclose(y, (np.minimum(x / 0.2, 1) + np.minimum(x / 0.6, 1)) / 2, atol=1e-6)


def test_the_mean_precision_is_the_mean_of_the_steps():
    recall = np.array([0, 0.5, 1.0])
    figure = plots.precision_recall_curves(
        [(recall, np.array([1, 1.0, 0.5])), (recall, np.array([1, 0.5, 0.25]))], ["a", "b"], np.array([0.75, 0.375])
    )
    x, y = figure.axes[0].lines[-1].get_data()
    np.testing.assert_allclose(y[(x > 0) & (x <= 0.5)], 0.75)
    np.testing.assert_allclose(y[x > 0.5], 0.375)


def test_reliability_diagram_shows_the_filled_bins_with_their_intervals():
    count, correct = np.array([0, 10, 0, 90]), np.array([0, 4, 0, 81])
    figure = plots.reliability_diagram(count, correct, np.array([np.nan, 0.4, np.nan, 0.95]))
    points = figure.axes[0].containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(points, [[0.4, 0.4], [0.95, 0.9]])
    assert [bar.get_height() for bar in figure.axes[1].patches] == [0, 10, 0, 90]
    assert "90 of 100" in texts(figure)
    render(plots.reliability_diagram(count * 0, correct * 0, np.full(4, np.nan)))


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_and_floats_give_the_same_picture(channels):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, channels), dtype=np.uint8)
    captions = ["5 → 3\n97 %"] * 5
    as_bytes = plots.image_grid(images, captions)
    as_floats = plots.image_grid(jnp.asarray(images / 255, jnp.float32), captions)
    np.testing.assert_array_equal(render(as_bytes), render(as_floats))
    assert len(as_bytes.axes) == 5
    assert texts(as_bytes).count("5 → 3\n97 %") == 5
    shown = np.asarray(as_bytes.axes[2].images[0].get_array())
    np.testing.assert_array_equal(shown, np.broadcast_to(images[2], (4, 6, 3)))


def test_images_of_the_grid_do_not_overlap_and_lie_inside_the_figure():
    figure = plots.image_grid(np.zeros((7, 8, 8, 1), np.uint8), ["a"] * 7, columns=3)
    boxes = [axes.get_position() for axes in figure.axes]
    for index, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= 1
        assert box.y1 <= 1 + 1e-9
        assert not any(box.overlaps(other) for other in boxes[:index])


def test_filters_put_zero_at_mid_grey_and_the_largest_weight_at_an_end_of_the_scale():
    kernels = np.zeros((3, 3, 3, 4), np.float32)
    kernels[0, 0, :, 0] = 2.0
    kernels[2, 2, :, 3] = -2.0
    shown = np.asarray(plots.filters(kernels).axes[0].images[0].get_array())
    assert shown[0, 0].tolist() == [1, 1, 1]
    assert shown[-1, -1].tolist() == [0, 0, 0]
    assert (shown == 0.5).all(axis=-1).mean() > 0.5


@pytest.mark.parametrize(
    ("shape", "most"), [((5, 5, 1, 6), 64), ((7, 7, 3, 100), 64), ((3, 3, 16, 8), 40), ((1, 1, 2, 1), 9)]
)
def test_filters_of_every_shape_are_drawn(shape, most):
    assert render(plots.filters(jnp.ones(shape), most=most)).min() > 0.9  # all white: nothing is as large
    grey = render(plots.filters(np.zeros(shape, np.float32), most=most))
    assert (abs(grey - 0.5) < 0.01).mean() > 0.4


def test_decision_boundary_circles_what_lies_on_the_wrong_side():
    grid = np.linspace(-1, 1, 21)
    right = 1 / (1 + np.exp(-5 * np.broadcast_to(grid, (11, 21))))
    points = np.array([[-0.5, 0.0], [0.5, 0.0], [0.7, 0.5]])
    figure = plots.decision_boundary(
        grid, np.linspace(-1, 1, 11), np.stack([1 - right, right], axis=-1), points, np.array([0, 1, 0])
    )
    circled = next(line for line in figure.axes[0].lines if line.get_label() == "misclassified")
    np.testing.assert_array_equal(circled.get_xydata(), [[0.7, 0.5]])
    render(figure)


def test_matplotlib_keeps_its_own_settings_and_no_figure_is_kept():
    before = dict(matplotlib.rcParams)
    plots.learning_rate_curve(np.arange(3), np.arange(3))
    assert dict(matplotlib.rcParams) == before
    assert not matplotlib._pylab_helpers.Gcf.figs


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="1 or 3 channels, got 4"):
        plots.image_grid(np.zeros((1, 2, 2, 4), np.uint8))
    with pytest.raises(UsageError, match="each of the 2 images or none, got 1"):
        plots.image_grid(np.zeros((2, 2, 2, 1), np.uint8), ["one"])
