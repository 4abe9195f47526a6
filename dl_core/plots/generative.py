"""Distances of generated images as a ladder: what each step of a known disturbance costs, and where a model stands."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Real
from matplotlib.figure import Figure

from dl_core.errors import UsageError
from dl_core.plots.style import COLOURS, DASHES, GREY, MARKERS, WIDTH, AnyArray, in_house_style, label_line_ends


@in_house_style
def distance_ladder(
    steps: Real[AnyArray, " steps"] | Sequence[float],
    distances: Mapping[str, Mapping[str, Float[AnyArray, "runs steps"]]],
    *,
    step_name: str = "strength of the disturbance",
    levels: Mapping[str, Mapping[str, float]] | None = None,
    log_steps: bool = False,
) -> Figure:
    """Fréchet and kernel distances against the strength of disturbances, or against the number of examples.

        distance_ladder(strengths, {"FID": {"noise": fid_noise, "blur": fid_blur}, "KID": {"noise": kid_noise}},
                        levels={"FID": {"real against real": 1.3}})

    Args:
      steps: strengths, or numbers of examples; rising.
      distances: name of the score -> name of the disturbance -> its values over runs (other samples) and steps.
      step_name: for the axis.
      levels: name of the score -> name -> value of a horizontal line, such as the distance of real from real images.
      log_steps: steps on a logarithmic scale.

    Returns:
      A Figure with a panel for each score: lines are means over the runs, bands reach from the lowest to the highest.

    Raises:
      UsageError: no scores, or values that are not [runs, steps].
    """
    steps = np.asarray(steps, float)
    if not distances or not all(distances.values()):
        raise UsageError("distances must hold at least one score with at least one disturbance, got an empty mapping")
    panels: Mapping[str, Mapping[str, np.ndarray]] = {
        score: {name: np.asarray(values, float) for name, values in lines.items()} for score, lines in distances.items()
    }
    for score, lines in panels.items():
        for name, values in lines.items():
            if values.ndim != 2 or values.shape[1] != len(steps) or not len(values):
                raise UsageError(
                    f"distances of {score!r} under {name!r} must have shape [runs, {len(steps)}], "
                    f"got {list(values.shape)}"
                )
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))  # one colour each, in all panels
    figure = Figure(figsize=(WIDTH, 0.4 + 2.4 * len(panels)))
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (score, lines) in zip(all_axes, panels.items(), strict=True):
        ends = []
        for name, values in lines.items():
            place = names.index(name)
            colour = COLOURS[place % len(COLOURS)]
            mean = values.mean(axis=0)
            axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
            axes.plot(
                steps, mean, color=colour, linestyle=DASHES[place % len(DASHES)],
                marker=MARKERS[place % len(MARKERS)], markersize=4,
            )  # fmt: skip
            ends.append((steps[-1], mean[-1], name, colour))
        for name, value in (levels or {}).get(score, {}).items():
            axes.axhline(value, color=GREY, linewidth=0.8)
            ends.append((steps[-1], value, name, GREY))
        if log_steps:
            axes.set_xscale("log")
            axes.set_xticks(steps, [f"{step:g}" for step in steps])
            axes.minorticks_off()
        axes.margins(x=0.02)
        axes.set_title(score)
        label_line_ends(axes, ends)
    all_axes[-1].set_xlabel(step_name)
    return figure
