"""The page on why a classifier says what it says: every method side by side, and how far to believe them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dl_core import plots
from train.report.pages import Cell, Page, Section
from train.report.summary import percent

READING = (
    "Orange pixels speak for the explained class, blue ones against it, white ones are neutral. Each map has its own "
    "scale, written below it, the same on both sides of zero; maps of several colour channels are summed over them. "
    "The saliency and the maps of activations (CAM, attention) have no sign.\n\n"
    "A map shows what the network reacts to, not what is true of the world, and not that the network is right. "
    "Methods answer different questions: gradients say what a small change would do, occlusion and Shapley values what "
    "an absence would do (and depend on what stands for absence), CAM is coarse. Guided backpropagation and "
    "deconvnet draw edges that hardly depend on the weights; do not take their sharpness for faith. One image proves "
    "nothing: compare methods, and test them by randomised weights and by deletion."
)
JUDGING = (
    "Means over the images above with their standard errors; few images, so look at the errors. Deletion: mean "
    "probability of the explained class while the most relevant pixels are taken away, insertion: while they are put "
    "back. Randomisation: the rank correlation that remains when all weights are drawn anew; a map that remains does "
    "not show the network. "
    "random, edges and |x| never look at the model: what does no better than they do proves nothing. The last columns "
    "are seconds for all images, with compilation and without."
)


def explanation_page(
    explained: Any,
    found: Mapping[str, np.ndarray],
    seconds: Sequence[tuple[str, float, float]],
    left_out: Sequence[tuple[str, str]],
    quality: Sequence[tuple[str, ...]],
    *,
    titles: Sequence[str],
    labels: np.ndarray | None,
    probabilities: np.ndarray,
    class_names: Sequence[str],
) -> Page:
    """The page.

    Args:
      explained: `train.explain.Explained`, n images.
      found: method -> attributions [n, …].
      seconds: (method, seconds of the first call, seconds of the second).
      left_out: (method, reason) of those that the model does not allow.
      quality: rows of `dl_core.explain.evaluate.comparison_rows`.
      titles: what each image is called.
      labels: int [n], or None where they are not known.
      probabilities: float [n, classes].
      class_names: one for each class.

    Returns:
      Page.
    """
    images, target = np.asarray(explained.images), np.asarray(explained.target)
    sections = [Section("How to read this", READING, wide=True)]
    for index, title in enumerate(titles):
        predicted, chances = int(probabilities[index].argmax()), probabilities[index].tolist()
        truth = "" if labels is None else f"true {class_names[labels[index]]}, "
        heading = f"{title}: {truth}predicted {class_names[predicted]} ({percent(chances[predicted])})"
        own = f"{class_names[target[index]]}\n{percent(chances[target[index]])}"
        maps = {name: values[index : index + 1] for name, values in found.items()}
        figure = plots.attribution_maps(images[index : index + 1], maps, [own])
        sections.append(Section(heading, f"Explained: {class_names[target[index]]}.", figure, wide=True))
    sections.append(Section("How far to believe them", JUDGING, table=_table(quality, seconds), wide=True))
    if left_out:
        rows: list[tuple[Cell, ...]] = [("method", "why"), *left_out]
        sections.append(Section("Not for this model", table=rows, wide=True, folded=True))
    return Page("Explanations", sections)


def _table(quality: Sequence[tuple[str, ...]], seconds: Sequence[tuple[str, float, float]]) -> list[tuple[Cell, ...]]:
    times = {name: (f"{first:.2f}", f"{again:.2f}") for name, first, again in seconds}
    heading, *rows = quality
    return [(*heading, "first call", "next"), *((*row, *times.get(row[0], ("", ""))) for row in rows)]
