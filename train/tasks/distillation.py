"""Distillation: classification by a student that learns from a finished run's answers beside the labels.

`config.distillation.teacher` is the workdir of the teacher, which sees the same augmented images in evaluation mode,
normalised as in its own training. Its weights are constants of the compiled step. Everything but the loss is the
classification task's; a trained student needs its teacher no more.
"""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from dl_core.errors import UsageError
from dl_core.losses import distillation
from train.tasks import DatasetInfo, Task, classification
from train.tasks.classification import load_data

__all__ = ["load_data", "make_task"]


def make_task(config: Any, info: DatasetInfo) -> Task:
    """The classification task with the loss of Hinton et al. (2015); see `dl_core.losses.distillation`."""
    options = config.distillation

    @functools.cache  # read when the first step is traced: a trained student is used without its teacher
    def teacher() -> Any:
        with jax.ensure_compile_time_eval():
            return read_teacher(options.teacher, info)

    def example_loss(
        logits: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
        images: Float[Array, "batch height width channels"],
    ) -> Float[Array, " batch"]:
        answers = teacher().apply_fn(teacher().variables, images)
        return distillation(logits, answers, labels, temperature=options.temperature, alpha=options.alpha)

    return classification.make_task(config, info, example_loss=example_loss)


def read_teacher(workdir: str, info: DatasetInfo) -> Any:
    """The trained teacher, once it is certain that it fits the student's data.

    Args:
      workdir: of a finished run.
      info: of the student's data.

    Returns:
      `train.trained.Trained` with its variables on the host.

    Raises:
      UsageError: no finished run there, or one for other classes or images.
    """
    from train.trained import restore  # late: it imports the tasks

    trained = restore(workdir)
    for what, given, needed in (
        ("classes", trained.info.class_names, info.class_names),
        ("image shape", trained.info.image_shape, info.image_shape),
    ):
        if tuple(given) != tuple(needed):
            raise UsageError(f"the teacher in {workdir!r} has the {what} {given}, and the student's data {needed}")
    return trained._replace(variables=jax.device_get(trained.variables))
