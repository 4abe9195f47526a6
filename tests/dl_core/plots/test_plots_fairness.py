"""Bars of groups: what is drawn is what was given, undefined rates are said, and nonsense is refused."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from dl_core.errors import UsageError
from dl_core.plots.fairness import group_rates

RATES = np.array([[0.5, 0.25, 0.75], [0.9, np.nan, 0.0]])
LOW, HIGH = np.clip(RATES - 0.1, 0, 1), np.clip(RATES + 0.2, 0, 1)
NAMES = {"rate_names": ["selection rate", "recall"], "group_names": ["a", "b", "c"]}


def render(figure):
    assert isinstance(figure, Figure)
    figure.savefig(io.BytesIO(), format="png", dpi=50)


def test_each_group_has_a_bar_of_its_rate_with_its_interval():
    figure = group_rates(jnp.asarray(RATES), LOW, HIGH, **NAMES, overall=np.array([0.5, 0.6]))
    first, second = figure.axes
    assert [bar.get_width() for bar in first.patches] == [0.5, 0.25, 0.75]
    assert [round(float(bar.get_width()), 6) for bar in second.patches] == [0.9, 0.0]
    ends = first.collections[0].get_segments()
    np.testing.assert_allclose([line[:, 0] for line in ends], np.stack([LOW[0], HIGH[0]], axis=1), rtol=1e-6)
    words = {text.get_text() for text in figure.findobj(Text)}
    assert {"selection rate", "recall", "a", "b", "c", "undefined", "all"} <= words
    render(figure)


@pytest.mark.parametrize(("rates", "groups"), [(1, 1), (6, 2), (4, 30)])
def test_any_number_of_rates_and_groups_is_drawn_without_intervals(rates, groups):
    values = np.random.default_rng(0).random((rates, groups))
    nothing = np.full_like(values, np.nan)
    names = {"rate_names": [f"r{i}" for i in range(rates)], "group_names": [f"g{i}" for i in range(groups)]}
    figure = group_rates(values, nothing, nothing, **names)
    assert sum(axes.get_visible() for axes in figure.axes) == rates
    render(figure)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"low": LOW[:1]}, r"one shape \[rates, groups\]"),
        ({"rates": RATES[:0], "low": LOW[:0], "high": HIGH[:0]}, "one shape"),
        ({"group_names": ["a"]}, "2 rates and 3 groups, got 2 and 1"),
        ({"overall": np.ones(3)}, r"shape \[2\]"),
    ],
)
def test_nonsense_is_refused(change, words, annotations_off):
    with pytest.raises(UsageError, match=words):
        group_rates(**{"rates": RATES, "low": LOW, "high": HIGH, **NAMES, **change})
