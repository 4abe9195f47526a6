"""Pictures of activations and receptive fields: what is drawn is what was given."""

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.patches import Rectangle

from dl_core import plots
from dl_core.activations import ACTIVATIONS, relu
from dl_core.errors import UsageError


def texts(figure):
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def test_every_activation_is_drawn_with_its_derivative():
    assert set(ACTIVATIONS) <= set(texts(plots.activation_functions()))


def test_the_left_half_of_relu_is_shaded_and_nothing_of_the_identity():
    figure = plots.activation_functions({"relu": relu, "identity": lambda x: x}, limit=2.0)
    half, none = (axes.collections[0].get_paths() for axes in figure.axes)
    assert none == []
    (shade,) = half
    assert (shade.vertices[:, 0].min(), shade.vertices[:, 0].max()) == pytest.approx((-2, 0), abs=0.01)
    slope, value = figure.axes[0].lines[1:]
    np.testing.assert_allclose(value.get_ydata(), np.maximum(value.get_xdata(), 0), atol=1e-6)
    assert set(slope.get_ydata()) == {0, 1}
    with pytest.raises(UsageError, match="must be positive"):
        plots.activation_functions(limit=0.0)


def test_receptive_fields_show_both_sizes_around_the_centre_of_mass():
    field = np.zeros((20, 30))
    field[4:7, 10:15] = 1
    figure = plots.receptive_fields([field, field], [(5, 7), (41, 9)], ["a", "b"])
    boxes = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert [(box.get_height(), box.get_width()) for box in boxes] == [(5, 7), (3, 5)]
    assert boxes[0].get_xy() == pytest.approx((12 - 3.5, 5 - 2.5))
    drawn = texts(figure)
    assert "theoretical 5×7\neffective 3×5" in drawn
    assert "theoretical 41×9 (beyond the image)\neffective 3×5" in drawn
    with pytest.raises(UsageError, match="one map, size and name each, got 1, 2 and 1"):
        plots.receptive_fields([field], [(5, 7), (1, 1)], ["a"])
