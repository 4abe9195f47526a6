"""`python -m train.attack` as a user meets it: the table, the page, and what it refuses."""

import re

import pytest
from called_programs import call

import train.__main__
import train.attack


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A LeNet-5 after four epochs on the digits."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    options = ("--config.epochs=4", "--config.parallel.devices=1")
    status, _, err = call(train.__main__, "--config=digits", *options, f"--workdir={workdir}")
    assert (status, err) == (0, "")
    return workdir


def accuracies(out: str, attack: str) -> list[float]:
    line = re.search(rf"^{attack} .*$", out, re.MULTILINE)
    assert line, out
    return [float(share) for share in re.findall(r"([\d.]+) %", line[0])]


def test_the_table_and_the_page_tell_the_same(finished):
    status, out, _ = call(
        train.attack, f"--workdir={finished}", "--attacks=noise,fgsm,pgd,deepfool", "--eps=0.02,0.1,0.3", "--count=40",
        "--skip-checks",
    )  # fmt: skip
    assert status == 0
    clean = float(re.search(r"([\d.]+) % correct", out)[1])
    found = {name: accuracies(out, name) for name in ("noise", "fgsm", "pgd", "deepfool")}
    for shares in found.values():
        assert shares == sorted(shares, reverse=True)
        assert clean >= shares[0]
    assert found["pgd"][-1] < 5  # a third of the range of a pixel leaves nothing of an ordinary network
    assert all(pgd <= noise for pgd, noise in zip(found["pgd"], found["noise"], strict=True))
    own, report = ((finished / name).read_text(encoding="utf-8") for name in ("attacks.html", "report.html"))
    for text in (own, report):
        for words in ("Accuracy under attack, 40 test images", "Responsible use", "nearest mistake", "ε = 0.3"):
            assert words in text
        assert f"{found['pgd'][0]:.2f} %" in text
        assert text.count("data:image/") >= 2  # the curves, and what it looks like
    assert "Confusion matrix" in report  # what the run had said is still there
    call(train.attack, f"--workdir={finished}", "--attacks=fgsm", "--eps=8/255", "--count=10", "--skip-checks")
    again = (finished / "report.html").read_text(encoding="utf-8")
    assert again.count(">Attacks</a>") == 1
    assert "deepfool" not in again


@pytest.mark.slow
def test_the_checks_say_whether_the_gradients_can_be_believed(finished, tmp_path):
    page = tmp_path / "page.html"
    argv = (f"--workdir={finished}", "--attacks=fgsm", "--eps=0.1", "--count=20", f"--output={page}")
    status, out, err = call(train.attack, *argv)
    assert (status, err) == (0, "")
    assert "no sign of masked gradients at 0.1" in out
    assert "Nothing points to masked gradients." in page.read_text(encoding="utf-8")


def test_distances_are_euclidean_where_the_norm_is(finished, tmp_path):
    page = tmp_path / "page.html"
    status, out, _ = call(
        train.attack, f"--workdir={finished}", "--attacks=fgsm,ddn", "--norm=l2", "--eps=0.5,1.5", "--count=20",
        f"--output={page}", "--skip-checks",
    )  # fmt: skip
    assert status == 0
    nearest, one_step = accuracies(out, "ddn"), accuracies(out, "fgsm")
    assert all(ddn <= fgsm for ddn, fgsm in zip(nearest, one_step, strict=True))
    assert "in the norm l2" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--attacks=pdg"], "unknown attack 'pdg'; did you mean 'pgd'"),
        (["--attacks=ddn"], "ddn measures in the Euclidean norm; give --norm=l2"),
        (["--eps=-0.1"], "--eps must not be negative"),
        (["--eps=large"], "--eps must be numbers like 0.03,0.1 or 8/255"),
        (["--count=0"], "--count must be at least 1"),
        (["--attack=fgsm"], "did you mean --attacks"),
    ],
)
def test_a_slip_is_one_line_and_status_2(finished, argv, words):
    status, _, err = call(train.attack, f"--workdir={finished}", *argv)
    assert status == 2
    assert words in err
    assert err.count("\n") == 1


def test_a_folder_without_a_run_is_refused(tmp_path):
    status, _, err = call(train.attack, f"--workdir={tmp_path}")
    assert status == 2
    assert "holds no run" in err


def test_help_names_the_attacks(capsys):
    with pytest.raises(SystemExit):
        train.attack.main(["--help"])
    assert "hop_skip_jump" in capsys.readouterr().out
