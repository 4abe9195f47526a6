"""What a report is made of, and what a finished run hands to those who write its pages."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

Cell = str | int | float


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and, each if given, text, a figure and a table.

    text: a blank line starts a paragraph.
    table: rows of text or numbers (shown to four digits); the first is the heading of the columns.
    wide: takes the full width of the page; otherwise two sections share it where the screen has room.
    folded: hidden until the reader opens it, for long tables.
    """

    heading: str
    text: str = ""
    figure: Figure | None = None
    table: Sequence[Sequence[Cell]] | None = None
    wide: bool = False
    folded: bool = False


@dataclasses.dataclass(frozen=True)
class Page:
    """A titled sequence of sections."""

    title: str
    sections: Sequence[Section]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A finished run of a classifier, as far as its report needs it.

    config, versions: as stored with the run.
    history: the lines of metrics.jsonl; empty where there is no single training to speak of.
    summary: as in summary.json.
    class_names: one for each class.
    labels, logits, images: the test split in one order: int [n], float [n, classes], uint8 [n, height, width,
      channels].
    variables: pytree of the model's parameters and statistics.
    class_balance: split -> class name -> number of examples.
    unreadable: (file, reason) of what could not be read.
    """

    config: Mapping[str, Any]
    versions: Mapping[str, str]
    history: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    class_names: tuple[str, ...]
    labels: np.ndarray
    logits: np.ndarray
    images: np.ndarray
    variables: Any
    class_balance: Mapping[str, Mapping[str, int]]
    unreadable: tuple[tuple[str, str], ...] = ()
