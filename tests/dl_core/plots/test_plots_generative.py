"""The ladder of distances: means over runs with their range, one colour a disturbance in all panels."""

import io

import matplotlib
import numpy as np
import pytest

from dl_core.errors import UsageError
from dl_core.plots.generative import distance_ladder

STEPS = [0.0, 0.1, 0.2]
NOISE = np.array([[1.0, 2, 6], [3, 4, 10]])
BLUR = np.array([[1.0, 5, 9]])


def test_lines_are_means_and_bands_the_range_of_the_runs():
    figure = distance_ladder(STEPS, {"FID": {"noise": NOISE, "blur": BLUR}}, levels={"FID": {"real": 1.5}})
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0, 2], [0.1, 3], [0.2, 8]])
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (1, 10)
    np.testing.assert_allclose(axes.lines[2].get_ydata(), [1.5, 1.5])
    assert {text.get_text() for text in axes.texts} == {"noise", "blur", "real"}


def test_each_score_has_a_panel_and_each_disturbance_one_colour():
    figure = distance_ladder(STEPS, {"FID": {"noise": NOISE, "blur": BLUR}, "KID": {"blur": BLUR}}, step_name="sigma")
    upper, lower = figure.axes
    assert (upper.get_title("left"), lower.get_title("left"), lower.get_xlabel()) == ("FID", "KID", "sigma")
    assert lower.lines[0].get_color() == upper.lines[1].get_color() != upper.lines[0].get_color()


@pytest.mark.parametrize("log_steps", [False, True])
def test_odd_inputs_are_drawn(log_steps):
    constant = {"FID": {"none": np.zeros((3, 1))}}
    broken = {"FID": {"nan": np.full((2, 1), np.nan), "one": np.ones((1, 1))}}
    for distances in (constant, broken):
        figure = distance_ladder(np.array([100]), distances, log_steps=log_steps)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=50)
        buffer.seek(0)
        assert matplotlib.image.imread(buffer)[..., :3].min() < 0.5


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize("distances", [{}, {"FID": {}}, {"FID": {"noise": NOISE[:, :2]}}, {"FID": {"noise": NOISE[0]}}])
def test_what_cannot_be_drawn_is_refused(distances):
    with pytest.raises(UsageError, match="distances"):
        distance_ladder(STEPS, distances)
