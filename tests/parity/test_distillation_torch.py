"""Distillation agrees with torch's kl_div and cross_entropy, values and gradients."""

import jax
import numpy as np
import pytest

from dl_core.losses import distillation

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.5), (4.0, 0.9), (20.0, 1.0)])
def test_values_and_gradients_agree_in_double_precision(temperature, alpha):
    random = np.random.default_rng(0)
    student, teacher = 4 * random.standard_normal((2, 8, 6))
    labels = random.integers(0, 6, 8).astype(np.int32)
    theirs = torch.tensor(student, requires_grad=True)
    functional = torch.nn.functional
    soft = functional.kl_div(
        functional.log_softmax(theirs / temperature, -1), torch.softmax(torch.tensor(teacher) / temperature, -1),
        reduction="none",
    ).sum(-1)  # fmt: skip
    hard = functional.cross_entropy(theirs, torch.tensor(labels, dtype=torch.long), reduction="none")
    expected = alpha * temperature**2 * soft + (1 - alpha) * hard
    expected.sum().backward()
    with jax.enable_x64(True):
        ours = lambda s: distillation(s, jax.numpy.asarray(teacher), labels, temperature=temperature, alpha=alpha)
        labels = jax.numpy.asarray(labels)
        student = jax.numpy.asarray(student)
        np.testing.assert_allclose(ours(student), expected.detach().numpy(), rtol=1e-10)
        np.testing.assert_allclose(
            jax.grad(lambda s: ours(s).sum())(student), theirs.grad.numpy(), rtol=1e-9, atol=1e-13
        )
