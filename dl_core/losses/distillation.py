"""Distillation: a small network learns from the answers of a large one.

Hinton, Vinyals, Dean (2015), "Distilling the knowledge in a neural network", https://arxiv.org/abs/1503.02531.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dl_core.errors import UsageError
from dl_core.losses.classification import cross_entropy
from dl_core.optim.options import Number, in_interval


def distillation(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "..."],  # of the student's shape, checked below
    labels: Int[Array, "*batch"] | Float[Array, "*batch classes"],
    *,
    temperature: Number = 4.0,
    alpha: Number = 0.9,
) -> Float[Array, "*batch"]:
    """α T² KL(p_T(teacher) ‖ p_T(student)) + (1 - α) cross-entropy, with p_T = softmax(logits / T).

    T² keeps the gradient of the soft part at the size of the hard part's whatever T (section 2 of the paper). For large
    T the soft part becomes ½ times the mean squared difference of the logits over the classes, each side's mean taken
    off. In torch: α T² kl_div(log_softmax(s / T), softmax(t / T)).sum(-1) + (1 - α) cross_entropy(s, y).

    Args:
      student_logits: computed with in float32 at least.
      teacher_logits: constants, no gradient reaches them.
      labels: the class, in [0, classes), or a distribution over classes.
      temperature: T > 0.
      alpha: α in [0, 1], the weight of the soft part.

    Returns:
      One loss per example, >= 0.

    Raises:
      UsageError: T or α out of range, or shapes that do not belong together.
    """
    in_interval("temperature", temperature, "(0, inf)")
    in_interval("alpha", alpha, "[0, 1]")
    if student_logits.shape != teacher_logits.shape:
        raise UsageError(
            f"student and teacher need the same classes, got {student_logits.shape} and {teacher_logits.shape}"
        )
    dtype = jnp.promote_types(student_logits.dtype, jnp.float32)
    student, teacher = student_logits.astype(dtype), jax.lax.stop_gradient(teacher_logits).astype(dtype)
    log_p, log_q = (jax.nn.log_softmax(logits / temperature, axis=-1) for logits in (teacher, student))
    soft = temperature**2 * optax.losses.kl_divergence_with_log_targets(log_q, log_p)
    return alpha * soft + (1 - alpha) * cross_entropy(student, labels)
