"""What the README prints runs: its example, its test command in the checks, its links and its folders."""

import pathlib
import re

import jax
import jax.numpy as jnp
from safetensors.numpy import save_file

import models

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variables = models.create("resnet18", num_classes=1000).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    save_file(models.export_torch("resnet18", variables), "resnet18.safetensors")
    names = {}
    for example in blocks("python"):
        exec(compile(example, "README.md", "exec"), names)
    assert names["attack"].adversarial.shape == names["images"].shape
    for name in ("attribution", "relevance", "occluded"):
        assert names[name].shape == names["images"].shape
    assert names["low"] < 0.97 < names["high"]
    assert names["worst"].robust.shape == names["walked"].success.shape == names["labels"].shape
    assert names["certificate"].radius.shape == names["labels"].shape


def test_the_checks_run_the_test_command_as_printed():
    command = blocks("bash")[1].strip()
    assert "pytest" in command
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_every_link_leads_somewhere():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_config_that_is_named_exists():
    for name in re.findall(r"--config=(\w+)", README):
        assert (ROOT / "train" / "configs" / f"{name}.py").exists()
