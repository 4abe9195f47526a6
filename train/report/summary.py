"""The figures of a run as a table: printed at its end, and first in its report."""

from collections.abc import Callable, Mapping
from typing import Any

from train.report.pages import RunRecord, Section


def percent(value: float) -> str:
    """A share in [0, 1] as a percentage with two digits."""
    return f"{100 * value:.2f} %"


def number(value: float) -> str:
    """A value with four digits."""
    return f"{value:.4g}"


def _score(value: float) -> str:
    return f"{value:.4f}"


IN_UNITS = ("mae", "median_absolute_error", "rmse", "constant_mae")  # followed by the unit of the values, if known
# key of the summary, bare or after "test_": (its name, how it is written); in the order of the table
SCORES: dict[str, tuple[str, Callable[[float], str]]] = {
    "accuracy": ("test accuracy", percent),
    "precision_macro": ("macro precision", percent),
    "recall_macro": ("macro recall", percent),
    "f1_macro": ("macro F1", percent),
    "calibration_error": ("calibration error (ECE)", _score),
    "negative_log_likelihood": ("negative log-likelihood", _score),
    "brier_score": ("Brier score", _score),
    "majority_baseline": ("always the commonest class", percent),
    "mae": ("test mean absolute error", number),
    "median_absolute_error": ("median absolute error", number),
    "within_5_degrees": ("within 5°", percent),
    "within_10_degrees": ("within 10°", percent),
    "rmse": ("root mean squared error", number),
    "r2": ("share of variance explained (R²)", _score),
    "constant_mae": ("always the same answer", number),
    "baseline_accuracy": ("baseline", percent),
}


def duration(seconds: float) -> str:
    """Seconds in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of everything that a summary has of what is shown; see `summary_table`."""
    get = lambda name: summary.get(f"test_{name}", summary.get(name))
    rows = []
    for key, (name, write) in SCORES.items():
        if get(key) is None:
            continue
        if key == "baseline_accuracy" and summary.get("baseline"):
            name = f"{name} {summary['baseline']}"
        unit = (get("unit") or "") if key in IN_UNITS else ""
        rows.append((name, write(get(key)) + unit))
        if get(f"{key}_interval"):
            low, high = (write(end) for end in get(f"{key}_interval"))
            rows.append(("  95 % interval", f"{low.removesuffix(' %')} – {high}{unit}"))
    named = {"parameters": "parameters", "steps": "steps", "seconds": "time", "workdir": "run"}
    shown = {"parameters": "{:,}".format, "steps": "{:,}".format, "seconds": duration, "workdir": str}
    return rows + [(named[key], shown[key](summary[key])) for key in named if summary.get(key) is not None]


def summary_table(summary: Mapping[str, Any]) -> str:
    """The table printed at the end of a run.

    Args:
      summary: the keys of `SCORES`, bare or after "test_", and "parameters", "steps", "seconds", "workdir"; what is
        missing is left out.

    Returns:
      Lines of aligned text.
    """
    rows = summary_rows(summary)
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in config.items():
        inner = isinstance(value, Mapping) and value
        rows += _flat(value, f"{prefix}{key}.") if inner else [(f"{prefix}{key}", str(value))]
    return rows


def run_sections(record: RunRecord) -> list[Section]:
    """How a run was made: configuration and versions."""
    versions = [(name, str(version)) for name, version in record.versions.items()]
    return [
        Section("Configuration", table=[("field", "value"), *_flat(record.config)]),
        Section("Versions", table=[("package", "version"), *versions]),
    ]


def unreadable_section(record: RunRecord, most_unfolded: int = 40) -> Section:
    """The files that could not be read."""
    if not record.unreadable:
        return Section("Unreadable files", "None: every file could be read.")
    text = f"{len(record.unreadable):,} left out."
    folded = len(record.unreadable) > most_unfolded
    return Section("Unreadable files", text, table=[("file", "reason"), *record.unreadable], folded=folded)
