"""The task distillation: the teacher stays as it is, sees what the student sees, and is needed for training only."""

import io
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import small_config

from dl_core.errors import UsageError
from dl_core.losses import distillation
from train import configuration, tasks
from train.loop import train_and_evaluate
from train.run import prepare
from train.trained import restore


def student(teacher, **changes):
    config = small_config(**{"parallel.devices": 1, "data.name": "digits", "task": "distillation", **changes})
    config.model.name, config.model.fields = "mlp", {"hidden": (8,)}
    config.data.options = {"labels_per_class": 16}
    config.distillation.teacher = str(teacher)
    config.batch_size = 32
    return config


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    config = student("")
    config.task, config.model.fields = "classification", {"hidden": (32,)}
    train_and_evaluate(config, folder, stream=io.StringIO())
    return folder


def test_the_loss_is_that_of_the_paper_on_the_same_images(teacher):
    run, state = prepare(student(teacher, **{"augment.flip": False, "augment.crop_padding": 0}))
    batch = {"image": jnp.asarray(run.dataset.train.images[:8]), "label": jnp.asarray(run.dataset.train.labels[:8])}
    rows = {"row": jnp.arange(8, dtype=jnp.int32)}
    loss, _ = jax.jit(run.task.loss_fn)(state.params, state.model_state, {**batch, **rows}, jax.random.key(0))
    images = batch["image"] / 255
    trained = restore(teacher)
    expected = distillation(
        run.task.apply_fn(state.variables, images), trained.apply_fn(trained.variables, images), batch["label"]
    )
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)


def test_a_student_trains_on_a_teacher_and_is_used_without_it(teacher, tmp_path):
    source = tmp_path / "teacher"
    shutil.copytree(teacher, source)
    config = student(source)
    configuration.validate(config)
    summary = train_and_evaluate(config, tmp_path / "student", stream=io.StringIO())
    before, after = (restore(folder).variables for folder in (teacher, source))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    shutil.rmtree(source)
    trained = restore(tmp_path / "student")
    assert trained.apply_fn(trained.variables, np.zeros((2, 8, 8, 1), np.float32)).shape == (2, 10)
    assert 0 <= summary["test_accuracy"] <= 1


def test_a_teacher_that_does_not_fit_is_refused(teacher):
    with pytest.raises(UsageError, match=r"config.distillation.teacher=WORKDIR"):
        configuration.validate(student(""))
    run, state = prepare(student(teacher, **{"data.image_size": 16}))
    batch = {"image": jnp.zeros((2, 16, 16, 1), jnp.uint8), "label": jnp.zeros(2, jnp.int32)}
    with pytest.raises(UsageError, match="image shape"):
        run.task.loss_fn(state.params, {}, {**batch, "row": jnp.arange(2)}, jax.random.key(0))
    assert "distillation" in tasks.TASKS
