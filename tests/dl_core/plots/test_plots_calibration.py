"""Reliability diagrams side by side: same axes, each with its own error."""

import io

import jax
import numpy as np
import pytest

from dl_core.errors import UsageError
from dl_core.metrics.calibration import calibration_error, reliability_bins
from dl_core.plots.calibration import reliability_diagram, reliability_diagrams


def forecasts(sharpness):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 3)).astype(np.float32)
    shares = np.asarray(jax.nn.softmax(logits)).cumsum(axis=1)
    return (shares > rng.random((400, 1)) * shares[:, -1:]).argmax(axis=1), np.asarray(
        jax.nn.softmax(sharpness * logits)
    )


def test_before_and_after_stand_side_by_side_on_one_scale_with_their_errors():
    before, after = forecasts(4.0), forecasts(1.0)
    figure = reliability_diagrams({"before": reliability_bins(*before), "after": reliability_bins(*after)})
    figure.savefig(io.BytesIO(), format="png", dpi=50)
    upper = figure.axes[:2]
    assert [axes.get_title(loc="left") for axes in upper] == [
        f"{name}\nECE {float(calibration_error(*pair)):.3f}" for name, pair in (("before", before), ("after", after))
    ]
    assert upper[0].get_ylim() == upper[1].get_ylim()
    assert figure.axes[2].get_ylim() == figure.axes[3].get_ylim()
    alone = reliability_diagram(*reliability_bins(*before)).axes[0].containers[0].lines[0].get_xydata()
    np.testing.assert_array_equal(upper[0].containers[0].lines[0].get_xydata(), alone)


def test_bins_without_examples_are_drawn():
    bins = jax.tree.map(np.zeros_like, reliability_bins(*forecasts(1.0)))
    reliability_diagrams({"nothing": bins}).savefig(io.BytesIO(), format="png", dpi=50)


def test_nothing_to_draw_and_bins_that_do_not_match_are_refused():
    with pytest.raises(UsageError, match=r"got \[\]"):
        reliability_diagrams({})
    two = {"a": reliability_bins(*forecasts(1.0)), "b": reliability_bins(*forecasts(1.0), num_bins=5)}
    with pytest.raises(UsageError, match=r"got \[15, 5\]"):
        reliability_diagrams(two)
