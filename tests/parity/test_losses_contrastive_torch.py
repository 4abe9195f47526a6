"""Losses of embeddings, of sequences and of boxes against torch, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core import losses

torch = pytest.importorskip("torch")
functional = torch.nn.functional

RANDOM = np.random.default_rng(0)
A, B, C = RANDOM.normal(size=(3, 7, 4)).astype(np.float32)
CLASSES, SAME = np.array([0, 1, 2, 0, 3, 1, 0]), np.array([1, 0, 1, 1, 0, 0, 1], bool)


def same(here, there, *arrays, rtol=1e-4, atol=1e-5):
    """One value per row, and the gradients of their sum; float32 on both sides."""
    values, pullback = jax.vjp(here, *map(jnp.asarray, arrays))
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    expected = there(*tensors)
    expected.sum().backward()
    np.testing.assert_allclose(values, expected.detach(), rtol=rtol, atol=atol)
    for gradient, tensor in zip(pullback(jnp.ones_like(values)), tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad, rtol=rtol, atol=atol)


def test_info_nce():
    there = lambda a, b: functional.cross_entropy(
        functional.normalize(a) @ functional.normalize(b).T / 0.1, torch.arange(7), reduction="none"
    )
    same(lambda a, b: losses.info_nce(a, b, temperature=0.1), there, A, B)


def test_contrastive():
    def there(a, b):
        distances, together = functional.pairwise_distance(a, b, eps=0), torch.tensor(SAME)
        return 0.5 * torch.where(together, distances**2, functional.relu(3.0 - distances) ** 2)

    same(lambda a, b: losses.contrastive(a, b, jnp.asarray(SAME), margin=3.0), there, A, B)


def test_triplet_margin():
    same(
        losses.triplet_margin_loss,
        lambda a, p, n: functional.triplet_margin_loss(a, p, n, reduction="none"),
        *(A, B, C),
        atol=1e-4,  # eps is added in another place
    )


def test_cosine_distance():
    same(losses.cosine_distance, lambda a, b: 1 - functional.cosine_similarity(a, b), A, B)


def test_ctc_of_labels_without_alignment():
    logits = RANDOM.normal(size=(3, 9, 5)).astype(np.float32)
    labels, lengths, frames = np.array([[1, 2, 2], [3, 1, 0], [4, 0, 0]]), np.array([3, 2, 1]), np.array([9, 7, 4])
    padding = lambda sizes, most: jnp.asarray(np.arange(most)[None] >= sizes[:, None], jnp.float32)
    same(
        lambda z: losses.ctc_loss(z, padding(frames, 9), jnp.asarray(labels), padding(lengths, 3)),
        lambda z: functional.ctc_loss(
            functional.log_softmax(z, -1).movedim(0, 1), *map(torch.tensor, (labels, frames, lengths)), reduction="none"
        ),
        logits,
    )


@pytest.mark.parametrize(("ours", "theirs"), [("squared_error", "mse_loss"), ("smooth_l1", "smooth_l1_loss")])
def test_detection(ours, theirs):
    def there(logits, boxes):
        present = torch.tensor(CLASSES) != 0
        between = getattr(functional, theirs)(boxes, torch.tensor(C), reduction="none").sum(-1)
        return functional.cross_entropy(logits, torch.tensor(CLASSES), reduction="none") + 2.0 * present * between

    same(
        lambda logits, boxes: losses.detection(
            logits, boxes, jnp.asarray(CLASSES), jnp.asarray(C), box_weight=2.0, box_loss=getattr(losses, ours)
        ),
        there,
        *(A, B),
    )
