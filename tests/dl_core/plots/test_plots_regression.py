"""Figures of regressions: points are what was given, and angles do not wrap around."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from dl_core import plots

LABELS = np.array([1.0, 90.0, 359.0])
PREDICTIONS = np.array([358.0, 100.0, 2.0])


def points(figure):
    return np.asarray(figure.axes[0].collections[0].get_offsets())


def test_angles_are_drawn_within_half_a_turn_of_the_true_ones():
    figure = plots.predicted_against_true(LABELS, PREDICTIONS, name="gaze", period=360.0)
    np.testing.assert_allclose(points(figure), [[1, -2], [90, 100], [359, 362]])
    assert figure.axes[0].get_xlabel() == "true gaze"


def test_values_are_drawn_as_they_are():
    np.testing.assert_array_equal(
        points(plots.predicted_against_true(LABELS, PREDICTIONS)), np.stack([LABELS, PREDICTIONS], axis=1)
    )
    many = plots.predicted_against_true(np.arange(5000.0), np.arange(5000.0))
    assert len(points(many)) == 2000


def test_the_error_of_a_sector_is_its_mean():
    errors = plots.error_by_angle(np.array([10.0, 20.0, 355.0]), np.array([2.0, 4.0, 7.0]))
    heights = [bar.get_height() for bar in errors.axes[0].patches]
    np.testing.assert_allclose(heights, [3, *[0] * 10, 7])


@pytest.mark.parametrize("n", [0, 1])
def test_odd_numbers_of_points_are_drawn(n):
    assert isinstance(plots.predicted_against_true(LABELS[:n], PREDICTIONS[:n]), Figure)
    assert isinstance(plots.error_by_angle(LABELS[:n], PREDICTIONS[:n]), Figure)
