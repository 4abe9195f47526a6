"""`python -m train.explain` as a user meets it: the page, what it says, and what it refuses."""

import re

import numpy as np
import pytest
from called_programs import call
from PIL import Image

import train.__main__
import train.explain
from dl_core.data import load


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A LeNet-5 after two epochs on the digits."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    options = ("--config.epochs=2", "--config.parallel.devices=1")
    status, _, err = call(train.__main__, "--config=digits", *options, f"--workdir={workdir}")
    assert (status, err) == (0, "")
    return workdir


def test_the_page_shows_every_method_side_by_side_with_its_quality(finished):
    chosen = "gradient_x_input,lrp_epsilon,grad_cam,attention_rollout"
    status, out, err = call(train.explain, f"--workdir={finished}", f"--methods={chosen}", "--count=3")
    assert (status, err) == (0, "")
    assert re.search(r"gradient_x_input +\d+\.\d\d s", out)
    assert "attention_rollout           left out: no layer that matches" in out
    own, report = ((finished / name).read_text(encoding="utf-8") for name in ("explanations.html", "report.html"))
    for text in (own, report):
        assert text.count("data:image/png") >= 3
        for words in ("Explanations", "How to read this", "deletion ↓", "insertion ↑", "random", "attention_rollout"):
            assert words in text
        assert len(re.findall(r"test image \d+: true \d, predicted \d", text)) >= 3
    assert "Confusion matrix" in report  # what the run had said is still there
    call(train.explain, f"--workdir={finished}", "--methods=saliency", "--count=1")
    again = (finished / "report.html").read_text(encoding="utf-8")
    assert again.count(">Explanations</a>") == 1
    assert "lrp_epsilon" not in again


def test_files_and_a_class_of_ones_own_are_explained(finished, tmp_path):
    images = load("digits").test.arrays()[0]
    Image.fromarray(images[0, ..., 0]).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page = tmp_path / "page.html"
    status, _, err = call(
        train.explain, f"--workdir={finished}", "--methods=gradient_x_input", "--target=7", f"--output={page}",
        tmp_path / "good.png", tmp_path / "broken.png",
    )  # fmt: skip
    assert status == 0
    assert "broken.png" in err
    text = page.read_text(encoding="utf-8")
    assert "good.png: predicted" in text
    assert "Explained: 7." in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--methods=grad_kam"], "unknown method 'grad_kam'; did you mean 'grad_cam'"),
        (["--methods=attention_rollout"], "none of the methods suits this model"),
        (["--methods=saliency", "--target=eleven"], "unknown class 'eleven'"),
        (["--count=0"], "--count must be at least 1"),
        (["--method=saliency"], "did you mean --methods"),
    ],
)
def test_a_slip_is_one_line_and_status_2(finished, argv, words):
    status, _, err = call(train.explain, f"--workdir={finished}", *argv)
    assert status == 2
    assert words in err
    assert err.count("\n") == 1


def test_a_folder_without_a_run_is_refused(tmp_path):
    status, _, err = call(train.explain, f"--workdir={tmp_path}")
    assert status == 2
    assert "holds no run" in err


def test_a_third_of_the_examples_are_the_most_confident_mistakes():
    logits = np.zeros((12, 3), np.float32)
    labels = np.arange(12) % 3
    logits[np.arange(12), labels] = 2.0
    logits[3], logits[4] = [0, 0, 9], [0, 0, 8]  # of the classes 0 and 1, taken for 2
    np.testing.assert_array_equal(train.explain.choose_examples(labels, logits, 6), [0, 1, 2, 6, 3, 4])
    np.testing.assert_array_equal(train.explain.choose_examples(labels, logits, 1), [0])
    assert len(train.explain.choose_examples(labels, logits, 50)) == 12
