"""Whether explanations are any good, as pictures: deletion and insertion beside random order, and sanity checks.

A line of an explanation means little without the line of one that knows nothing: it is drawn in grey, with every panel.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Real
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dl_core.errors import UsageError
from dl_core.plots.style import COLOURS, DASHES, GREY, MARKERS, WIDTH, AnyArray, in_house_style, label_line_ends

Curves = Mapping[str, Float[AnyArray, "examples points"]]


@in_house_style
def perturbation_curves(
    fractions: Real[AnyArray, " points"],
    curves: Mapping[str, Curves],
    *,
    random_order: Curves | None = None,
    output_name: str = "probability of the target",
) -> Figure:
    """The output while features are deleted, or inserted, in the order of each explanation.

        perturbation_curves(found.fractions, {"deletion": {"gradient": found.scores, …}, "insertion": {…}},
                            random_order={"deletion": random.scores, …})

    Args:
      fractions: share of the features that were exchanged, rising from 0 to 1.
      curves: name of the panel -> name of the method -> the output of each example at each share.
      random_order: name of the panel -> the same for features in random order; drawn in grey.
      output_name: for the axis.

    Returns:
      A Figure with a panel for each entry: lines are means over the examples, bands reach one standard error to either
      side, and the number beside a name is the area under the line.

    Raises:
      UsageError: no curves, or curves that are not [examples, points].
    """
    fractions = np.asarray(fractions, float)
    random_order = random_order or {}
    if not curves or not all(curves.values()):
        raise UsageError("curves must hold at least one panel with at least one method, got an empty mapping")
    if unknown := set(random_order) - set(curves):
        raise UsageError(f"random_order has no panel for {', '.join(sorted(unknown))}; panels: {', '.join(curves)}")
    for panel, methods in curves.items():
        beside = {"random order": random_order[panel]} if panel in random_order else {}
        for name, scores in {**methods, **beside}.items():
            if np.ndim(scores) != 2 or np.shape(scores)[1] != len(fractions) or not len(scores):
                raise UsageError(
                    f"curves of {name!r} in {panel!r} must have shape [examples, {len(fractions)}], got "
                    f"{list(np.shape(scores))}"
                )
    names = list(dict.fromkeys(name for methods in curves.values() for name in methods))  # a colour each, everywhere
    figure = Figure(figsize=(WIDTH, 0.5 + 2.5 * len(curves)))
    all_axes = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (panel, methods) in zip(all_axes, curves.items(), strict=True):
        if panel in random_order:
            _line_and_band(axes, fractions, random_order[panel], "random order", GREY, "-")
        for name, scores in methods.items():
            place = names.index(name)
            colour, dash = COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)]
            _line_and_band(axes, fractions, scores, name, colour, dash)
        axes.set_xlim(0, 1)
        axes.set_title(panel)
        axes.set_ylabel(output_name)
        # Not at the ends of the lines: with everything exchanged, all of them meet there.
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="area under the curve", alignment="left")
    all_axes[-1].set_xlabel("share of the features exchanged")
    return figure


@in_house_style
def randomization_curves(
    layers: Sequence[str],
    correlations: Mapping[str, Float[AnyArray, "steps examples"]],
    *,
    cascading: bool = True,
    correlation_name: str = "rank correlation with the original",
) -> Figure:
    """The sanity check as a picture: how alike the explanations stay while layers are randomised, a line a method.

    Args:
      layers: names in the order of randomisation, one for each step.
      correlations: name of the method -> correlation with the original explanation, after each step for each example.
        nan is left out of the means.
      cascading: each step adds a layer to those before, and a first point of 1 stands for none; False where a step
        randomises one layer alone: then points are not joined.
      correlation_name: for the axis.

    Returns:
      A Figure; lines are means over the examples, bars one standard error to either side. Near 0 at the right end is
      what a faithful explanation does.

    Raises:
      UsageError: no methods or layers, or correlations that are not [steps, examples].
    """
    if not correlations or not layers:
        raise UsageError(f"there must be at least one method and one layer, got {len(correlations)} and {len(layers)}")
    for name, values in correlations.items():
        if np.ndim(values) != 2 or np.shape(values)[0] != len(layers) or not np.shape(values)[1]:
            raise UsageError(
                f"correlations of {name!r} must have shape [{len(layers)}, examples], got {list(np.shape(values))}"
            )
    figure = Figure(figsize=(WIDTH, 3.6))
    axes = figure.add_subplot()
    axes.axhline(0, color=GREY, linewidth=0.8)
    start = np.arange(1, len(layers) + 1)
    ends = []
    for place, (name, values) in enumerate(correlations.items()):
        mean, error = _mean_and_error(np.asarray(values, float).T)
        places = start
        if cascading:
            places, mean, error = np.append(0, start), np.append(1, mean), np.append(0, error)
        colour, dash = COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)]
        axes.errorbar(
            places, mean, error, color=colour, linestyle=dash if cascading else "none",
            marker=MARKERS[place % len(MARKERS)], markersize=4, elinewidth=0.8,
        )  # fmt: skip
        ends.append((float(places[-1]), float(mean[-1]), name, colour))
    labels = ["none", *layers] if cascading else list(layers)
    axes.set_xticks(np.arange(len(labels)) + (not cascading), labels, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_ylim(top=1.05)
    axes.margins(x=0.03)
    axes.set_ylabel(correlation_name)
    axes.set_xlabel("randomised, each with all to its left" if cascading else "randomised alone")
    label_line_ends(axes, ends)
    return figure


def _line_and_band(
    axes: Axes, fractions: np.ndarray, scores: AnyArray, name: str, colour: str, dash: str | tuple
) -> None:
    mean, error = _mean_and_error(np.asarray(scores, float))
    axes.fill_between(fractions, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
    axes.plot(fractions, mean, color=colour, linestyle=dash, label=f"{name}  {np.trapezoid(mean, fractions):.3f}")


def _mean_and_error(
    values: Float[np.ndarray, "examples points"],
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Over the examples that have a value; the standard error of a single one is 0."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    kept = np.where(known, values, 0)
    mean = np.where(count > 0, kept.sum(axis=0) / np.maximum(count, 1), np.nan)
    variance = (np.where(known, values - mean, 0) ** 2).sum(axis=0) / np.maximum(count - 1, 1)
    return mean, np.sqrt(variance / np.maximum(count, 1))
