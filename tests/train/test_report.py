"""The report: verdicts on synthetic curves, self-contained and escaped HTML, and every page of a classifier's run."""

import dataclasses
import html.parser
import math
import re

import jax
import numpy as np
import pytest
import sklearn.metrics as sk

from dl_core.errors import UsageError
from train.report.classification import classification_pages, first_kernels
from train.report.diagnosis import diagnose
from train.report.html import add_page, write_html
from train.report.pages import Page, RunRecord, Section
from train.report.summary import summary_table

CHANCE = math.log(10)


def history(train, validation, *, noise=0.0, epochs=20, steps_per_epoch=10):
    """Lines of two losses given as functions of the epoch; training is measured at every step."""
    rng = np.random.default_rng(0)
    lines = []
    for step in range(1, epochs * steps_per_epoch + 1):
        epoch = step / steps_per_epoch
        loss = float(train(epoch) * np.exp(noise * rng.normal()))
        accuracy = float(np.clip(1 - loss / CHANCE, 0, 1))
        lines.append({
            "split": "train", "step": step, "epoch": epoch, "seconds": 0.1 * step, "loss": loss, "accuracy": accuracy,
            "learning_rate": 1e-3, "gradient_norm": 1.0 + loss, "update_norm": 0.01, "images_per_second": 1e3,
        })  # fmt: skip
        if step % steps_per_epoch == 0:
            loss = float(validation(epoch) * np.exp(0.3 * noise * rng.normal()))
            accuracy = float(np.clip(1 - loss / CHANCE, 0, 1))
            lines.append({
                "split": "validation", "step": step, "epoch": epoch, "seconds": 0.1 * step, "loss": loss,
                "accuracy": accuracy,
            })  # fmt: skip
    return lines


def falling(end, time=2.0, start=CHANCE):
    return lambda epoch: end + (start - end) * np.exp(-epoch / time)


CURVES = {
    "both low": ("good fit", falling(0.02), falling(0.08)),
    "validation below training, as with dropout": ("good fit", falling(0.3), falling(0.2)),
    "validation rises": ("overfitting", falling(0.01), lambda e: falling(0.5)(e) + 0.05 * max(e - 6, 0)),
    "validation stays high": ("overfitting", falling(0.01), falling(0.9)),
    "both high": ("underfitting", falling(1.9), falling(1.95)),
    "nothing learned": ("underfitting", lambda e: CHANCE, lambda e: CHANCE),
    "still falling": ("still improving", falling(0.1, time=12), falling(0.15, time=12)),
    "training blows up": ("diverged", lambda e: 0.5 + 0.3 * e, lambda e: 0.5 + 0.3 * e),
}


@pytest.mark.parametrize("noise", [0.0, 0.15])
@pytest.mark.parametrize("num_classes", [10, None])
@pytest.mark.parametrize("name", CURVES)
def test_curves_of_each_kind_get_the_right_verdict(name, num_classes, noise):
    label, train, validation = CURVES[name]
    if name == "training blows up" and num_classes is None:
        train = lambda e: CHANCE * (0.5 + 0.3 * e)  # the first loss is then the only measure of guessing
    verdict = diagnose(history(train, validation, noise=noise), num_classes=num_classes)
    assert verdict.label == label, verdict.text


def test_the_verdict_quotes_the_figures():
    lines = history(falling(0.1), lambda e: falling(0.5)(e) + 0.05 * max(e - 6, 0))
    verdict = diagnose(lines, num_classes=10)
    last_epoch = np.mean([line["loss"] for line in lines if line["split"] == "train" and line["epoch"] > 19])
    validation = {line["step"]: line["loss"] for line in lines if line["split"] == "validation"}
    assert verdict.gap == pytest.approx(validation[200] - last_epoch)
    lowest = min(validation, key=validation.get)
    for figure in (f"{last_epoch:.3g}", f"{validation[200]:.3g}", f"{verdict.gap:.2g}", f"step {lowest}", "2.3"):
        assert figure in verdict.text


def smoothed(end):
    """A training loss with label smoothing of 0.05 over ten classes: never below the entropy of the smoothed labels."""
    right, wrong = 0.955, 0.005
    floor = -(right * math.log(right) + 9 * wrong * math.log(wrong))
    return falling(floor + end)


def test_label_smoothing_does_not_turn_the_sign_of_the_gap():
    """The figures of a LeNet-5 on digits: the steps' loss is 0.30, and 0.05 when measured as validation is."""
    lines = history(smoothed(0.02), falling(0.074))
    alike = {"train_loss": 0.0502, "validation_loss": 0.0697, "train_accuracy": 1.0, "validation_accuracy": 0.9963}
    verdict = diagnose(lines, num_classes=10, measured_alike=alike)
    assert verdict.label == "good fit"
    assert verdict.gap == pytest.approx(0.0195)
    for figure in ("Measured alike", "0.0502", "0.0697", "training accuracy 100.0 %", "validation accuracy 99.6 %"):
        assert figure in verdict.text
    without = diagnose(lines, num_classes=10)
    assert without.gap < 0
    assert "may contain label smoothing" in without.text


def test_label_smoothing_does_not_hide_overfitting():
    """The steps' loss stays above 0.28 while the model fits the training split perfectly and validation stays high."""
    lines = history(smoothed(0.3), falling(0.6))
    alike = {"train_loss": 0.001, "validation_loss": 0.6}
    assert diagnose(lines, num_classes=10).label == "good fit"  # what the curves alone suggest
    assert diagnose(lines, num_classes=10, measured_alike=alike).label == "overfitting"


@pytest.mark.parametrize("alike", [{}, {"train_loss": 0.1}, {"train_loss": math.nan, "validation_loss": 0.1}])
def test_incomplete_measurements_fall_back_on_the_history(alike):
    lines = history(falling(0.02), falling(0.08))
    assert diagnose(lines, num_classes=10, measured_alike=alike) == diagnose(lines, num_classes=10)


def test_the_report_judges_by_the_losses_of_the_summary():
    run = record(classes=4, n=60)
    run = dataclasses.replace(run, summary={**run.summary, "train_loss": 0.001, "validation_loss": 1.2})
    assert any(part.heading == "Verdict: overfitting" for part in classification_pages(run)[0].sections)


def test_a_loss_that_is_not_finite_is_named_with_its_step():
    lines = history(falling(0.1), falling(0.1))
    lines[30]["loss"] = math.nan
    verdict = diagnose(lines)
    assert verdict.label == "diverged"
    assert f"nan at step {lines[30]['step']}" in verdict.text


def test_short_runs_get_no_verdict():
    assert diagnose([]).label == "too short to tell"
    assert diagnose(history(falling(0.1), falling(0.1), epochs=2)).label == "too short to tell"
    assert diagnose(history(falling(0.1), falling(0.1), epochs=1)[:1]).label == "too short to tell"


def test_lines_in_any_order_and_of_other_splits_do_not_matter():
    lines = history(falling(0.02), falling(0.08))
    shuffled = [lines[i] for i in np.random.default_rng(0).permutation(len(lines))]
    extra = [{"split": "test", "step": 1, "loss": math.nan}, {"step": 3}]
    assert diagnose([*extra, *shuffled], num_classes=10) == diagnose(lines, num_classes=10)


class Reader(html.parser.HTMLParser):
    """Collects tags, their attributes and the text; refuses elements closed in the wrong order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def record(*, classes=10, n=200, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n).astype(np.int32)
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), labels] += 3
    names = tuple(f"<class & {k}>" for k in range(classes))
    return RunRecord(
        config={"model": {"name": "lenet5", "note": "<script>alert(1)</script>"}, "seed": 0},
        versions={"jax": "0.10.2"},
        history=history(falling(0.02), falling(0.08)),
        summary={"seconds": 83.2, "steps": 200, "parameters": 61706, "workdir": "runs/<tiny>"},
        class_names=names,
        labels=labels,
        logits=logits,
        images=rng.integers(0, 256, (n, 8, 8, channels), dtype=np.uint8),
        variables={"params": {"Conv_0": {"kernel": rng.normal(size=(3, 3, channels, 4)).astype(np.float32)}}},
        class_balance={split: dict.fromkeys(names, 9) for split in ("train", "validation", "test")},
        unreadable=(("cats/<bad>.png", "truncated & short"),),
    )


@pytest.fixture(scope="module")
def finished():
    run = record()
    return run, classification_pages(run)


def section(pages, heading):
    return next(section for page in pages for section in page.sections if section.heading == heading)


def test_the_report_of_a_classifier_is_whole_self_contained_and_escaped(finished, tmp_path):
    run, pages = finished
    path = write_html(tmp_path / "report.html", "a <b>title</b>", pages)
    text = path.read_text(encoding="utf-8")
    reader = Reader(text)
    kinds = [tag for tag, _ in reader.tags]
    assert "script" not in kinds
    assert "b" not in kinds
    for tag, attributes in reader.tags:
        if tag == "img":
            assert re.match(r"data:image/(png|svg\+xml);base64,", attributes["src"])
            assert attributes["alt"]
        assert not attributes.get("href", "#").startswith("http")
    assert "url(" not in text
    assert any(attributes.get("name") == "viewport" for _, attributes in reader.tags)
    assert "@media print" in text
    assert "prefers-color-scheme: dark" in text
    assert kinds.count("img") == 10
    words = " ".join(reader.words)
    for heading in (
        "In short", "Verdict: good fit", "Loss", "Accuracy", "Learning rate", "Gradient and update norms",
        "Confusion matrix", "Calibration", "ROC curves", "Precision-recall curves", "Per class",
        "Most confident mistakes", "Most frequent confusions", "First-layer filters", "Examples of each class",
        "Unreadable files", "Configuration", "Versions",
    ):  # fmt: skip
        assert heading in reader.words, heading
    for value in ("<script>alert(1)</script>", "cats/<bad>.png", "<class & 3>", "runs/<tiny>", "61,706", "model.note"):
        assert value in words
    accuracy = sk.accuracy_score(run.labels, run.logits.argmax(1))
    assert f"{100 * accuracy:.2f} %" in words
    assert path.stat().st_size < 3_000_000
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    "change", ["two classes", "many classes", "no history", "no test split", "all right", "no convolution"]
)
def test_pages_of_unusual_runs_are_written(tmp_path, change):
    run = record(classes={"two classes": 2, "many classes": 120}.get(change, 4), n=150, channels=3)
    if change == "no history":
        run = dataclasses.replace(run, history=[])
    if change == "no test split":
        run = dataclasses.replace(run, labels=run.labels[:0], logits=run.logits[:0], images=run.images[:0])
    if change == "all right":
        run = dataclasses.replace(run, labels=run.logits.argmax(1).astype(np.int32), unreadable=())
    if change == "no convolution":
        run = dataclasses.replace(run, variables={"params": {"Dense_0": {"kernel": np.ones((192, 4))}}})
    pages = classification_pages(run)
    words = Reader(write_html(tmp_path / "report.html", change, pages).read_text(encoding="utf-8")).words
    assert ("Loss" in words) == (change != "no history")
    assert ("Confusion matrix" in words) == (change != "no test split")
    assert ("No test example was misclassified." in words) == (change == "all right")
    assert ("First-layer filters" in words) == (change not in ("no convolution", "no test split"))


def test_the_per_class_table_agrees_with_scikit_learn(finished):
    run, pages = finished
    columns, *rows = section(pages, "Per class").table
    probabilities = np.asarray(jax.nn.softmax(run.logits))
    precision, recall, f1, support = sk.precision_recall_fscore_support(run.labels, probabilities.argmax(1))
    for name, expected in (
        ("examples", support), ("precision", precision), ("recall", recall), ("F1", f1),
        ("AUROC", sk.roc_auc_score(np.eye(10)[run.labels], probabilities, average=None)),
        ("AP", sk.average_precision_score(np.eye(10)[run.labels], probabilities, average=None)),
    ):  # fmt: skip
        shown = [float(row[columns.index(name)]) for row in rows]
        np.testing.assert_allclose(shown, expected, atol=5.1e-4)  # three decimals


def test_the_mistakes_are_the_most_confident_ones_first(finished):
    run, pages = finished
    captions = [axes.texts[0].get_text() for axes in section(pages, "Most confident mistakes").figure.axes]
    shares = [float(caption.split("\n")[-1].removesuffix(" %")) for caption in captions]
    probabilities = np.asarray(jax.nn.softmax(run.logits))
    wrong = probabilities.argmax(1) != run.labels
    expected = np.sort(100 * probabilities.max(1)[wrong])[::-1][: len(shares)]
    np.testing.assert_allclose(shares, expected, atol=0.051)  # one decimal


def test_the_first_convolution_is_the_one_that_sees_the_images():
    kernel = lambda *shape: np.ones(shape, np.float32)
    params = {
        "Conv_10": {"kernel": kernel(3, 3, 3, 10)},
        "Conv_2": {"kernel": kernel(3, 3, 3, 2)},
        "A": {"kernel": kernel(3, 3, 16, 9)},
        "B": {"kernel": kernel(1, 1, 3, 9)},
        "Dense": {"kernel": kernel(4, 4)},
    }
    assert first_kernels({"params": params}, channels=3).shape == (3, 3, 3, 2)
    assert first_kernels({"params": params}, channels=1) is None
    assert first_kernels(None, channels=1) is None


def test_any_task_may_append_its_pages(finished, tmp_path):
    own = Page("Attacks", [Section("Robust accuracy", "First.\n\nSecond.", table=[("eps", "accuracy"), (0.1, 0.25)])])
    text = write_html(tmp_path / "r.html", "run", [*finished[1], own]).read_text(encoding="utf-8")
    words = Reader(text).words
    assert {"Attacks", "First.", "Second.", "eps", "0.25"} <= set(words)


def test_a_page_is_added_to_a_report_once_and_then_replaced(tmp_path):
    path = write_html(tmp_path / "r.html", "run", [Page("A & B", [Section("one", "first")]), Page("C", [])])
    add_page(path, Page("New & <last>", [Section("two", "second words")]))
    longer = path.read_text(encoding="utf-8")
    whole = write_html(
        tmp_path / "whole.html",
        "run",
        [
            Page("A & B", [Section("one", "first")]),
            Page("C", []),
            Page("New & <last>", [Section("two", "second words")]),
        ],
    )
    assert longer == whole.read_text(encoding="utf-8")
    add_page(path, Page("A & B", [Section("one", "another first")]))  # in the middle
    add_page(path, Page("New & <last>", [Section("two", "other words")]))  # at the end
    reader = Reader(path.read_text(encoding="utf-8"))
    assert "another first" in reader.words
    assert "other words" in reader.words
    assert "second words" not in reader.words
    assert path.read_text(encoding="utf-8").count("<h2") == 3


def test_a_page_is_not_added_to_what_is_no_report(tmp_path):
    (tmp_path / "notes.html").write_text("<p>notes</p>")
    for name in ("missing.html", "notes.html"):
        with pytest.raises(UsageError, match="is not a report of a run"):
            add_page(tmp_path / name, Page("New", []))


def test_the_same_run_writes_the_same_bytes(tmp_path):
    first, second = (write_html(tmp_path / name, "run", classification_pages(record())) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_the_table_printed_at_the_end_of_a_run():
    summary = {
        "test_accuracy": 0.9815, "test_accuracy_interval": (0.957, 0.992), "test_f1_macro": 0.98,
        "test_calibration_error": 0.0123, "majority_baseline": 0.1, "seconds": 83.2, "workdir": "runs/digits",
    }  # fmt: skip
    table = summary_table(summary)
    for words in (
        r"test accuracy +98.15 %", r"95 % interval +95.70 – 99.20 %", r"macro F1 +98.00 %", r"\(ECE\) +0.0123",
        r"commonest class +10.00 %", r"time +1 min 23 s", r"run +runs/digits",
    ):  # fmt: skip
        assert re.search(words, table), table
    assert "macro recall" not in table
    starts = {re.match(r"\s*(?:\S+ )*\S+\s{2,}", line).end() for line in table.splitlines()}
    assert len(starts) == 1
    assert summary_table({}) == ""
