"""Losses of overlap against the same formulas in torch, with gradients, and against torchmetrics on decisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torchvision_on_cpu import import_zoo

from dl_core import losses

torch = pytest.importorskip("torch")
import_zoo()  # torchmetrics imports torchvision
segmentation = pytest.importorskip("torchmetrics.functional.segmentation")

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(scale=2, size=(4, 6, 7, 3)).astype(np.float32)
LABELS = RANDOM.integers(0, 3, (4, 6, 7))
VOID = RANDOM.random((4, 6, 7)) < 0.3


def tversky(logits, labels, kept, alpha, beta, smooth):
    probabilities = torch.softmax(logits, -1) * kept[..., None]
    truth = torch.nn.functional.one_hot(labels, 3).float() * kept[..., None]
    both, predicted, actual = (x.sum((1, 2)) for x in (probabilities * truth, probabilities, truth))
    loss = 1 - (both + smooth) / (both + alpha * (predicted - both) + beta * (actual - both) + smooth)
    return loss.mean(-1)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (1.0, 1.0), (0.2, 0.8)])
def test_values_and_gradients_with_pixels_left_out(alpha, beta):
    run = lambda z: losses.tversky(z, jnp.asarray(LABELS), alpha=alpha, beta=beta, where=jnp.asarray(~VOID))
    values, pullback = jax.vjp(run, jnp.asarray(LOGITS))
    tensor = torch.tensor(LOGITS, requires_grad=True)
    expected = tversky(tensor, torch.tensor(LABELS), torch.tensor(~VOID).float(), alpha, beta, 1.0)
    expected.sum().backward()
    np.testing.assert_allclose(values, expected.detach(), rtol=1e-5)  # float32 on both sides
    np.testing.assert_allclose(pullback(jnp.ones(4))[0], tensor.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("weighting", ["square", None])
def test_of_decisions_they_are_one_less_the_scores_of_torchmetrics(weighting):
    """On 0 and 1 the soft counts are counts. Class 2 is rare; its weight is the inverse of its squared size."""
    labels = np.where((LABELS == 2) & VOID, 0, LABELS)
    found = LOGITS.argmax(-1)
    sure = jnp.asarray(1e4 * np.eye(3, dtype=np.float32)[found])
    channels_first = [torch.nn.functional.one_hot(torch.tensor(x), 3).movedim(-1, 1) for x in (found, labels)]
    if weighting:
        scores = segmentation.generalized_dice_score(*channels_first, num_classes=3, weight_type="square")
        ours = losses.generalized_dice(sure, jnp.asarray(labels), smooth=0.0)
    else:
        scores = segmentation.dice_score(
            *channels_first, num_classes=3, average="macro", aggregation_level="samplewise"
        )
        ours = losses.dice(sure, jnp.asarray(labels), smooth=0.0)
    np.testing.assert_allclose(1 - ours, scores, rtol=1e-5)
