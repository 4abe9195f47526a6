"""Classification losses against torch.nn.functional and scikit-learn, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from dl_core import losses

torch = pytest.importorskip("torch")

# float32 on both sides; log-sum-exp of a dozen terms differs in the last bits
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(params=[0, 1])
def examples(request):
    rng = np.random.default_rng(request.param)
    logits = rng.normal(scale=4, size=(8, 5)).astype(np.float32)
    soft = rng.dirichlet(np.ones(5), size=8).astype(np.float32)
    return logits, rng.integers(5, size=8), soft, rng.uniform(0.1, 3, size=5).astype(np.float32)


def assert_same_with_gradients(here, there, logits):
    """Both are functions of logits alone, one value per example; compared with the gradients of their sums."""
    values, pullback = jax.vjp(here, jnp.asarray(logits))
    tensor = torch.tensor(logits, requires_grad=True)
    expected = there(tensor)
    expected.sum().backward()
    np.testing.assert_allclose(values, expected.detach().numpy(), **CLOSE)
    np.testing.assert_allclose(pullback(jnp.ones_like(values))[0], tensor.grad.numpy(), **CLOSE)


@pytest.mark.parametrize("kind", ["classes", "distributions"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy(kind, weighted, label_smoothing, examples):
    logits, classes, soft, weights = examples
    labels = classes if kind == "classes" else soft
    assert_same_with_gradients(
        lambda z: losses.cross_entropy(
            z,
            jnp.asarray(labels),
            label_smoothing=label_smoothing,
            class_weights=jnp.asarray(weights) if weighted else None,
        ),
        lambda z: torch.nn.functional.cross_entropy(
            z,
            torch.tensor(labels),
            weight=torch.tensor(weights) if weighted else None,
            label_smoothing=label_smoothing,
            reduction="none",
        ),
        logits,
    )


def test_the_weighted_mean_is_taken_as_documented(examples):
    logits, labels, _, weights = examples
    per_example = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), class_weights=jnp.asarray(weights))
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), weight=torch.tensor(weights)
    )
    np.testing.assert_allclose(per_example.sum() / weights[labels].sum(), expected.item(), **CLOSE)


def test_where_is_torchs_ignored_index(examples):
    logits, labels, _, _ = examples
    labels = np.where(np.arange(8) % 3 == 0, -100, labels)
    assert_same_with_gradients(
        lambda z: losses.cross_entropy(z, jnp.asarray(labels), where=jnp.asarray(labels >= 0)),
        lambda z: torch.nn.functional.cross_entropy(z, torch.tensor(labels), ignore_index=-100, reduction="none"),
        logits,
    )


def test_negative_log_likelihood(examples):
    logits, labels, _, _ = examples
    assert_same_with_gradients(
        lambda z: losses.negative_log_likelihood(z, jnp.asarray(labels)),
        lambda z: torch.nn.functional.nll_loss(z, torch.tensor(labels), reduction="none"),
        np.asarray(jax.nn.log_softmax(jnp.asarray(logits))),
    )


def test_binary_cross_entropy(examples):
    logits, _, soft, _ = examples
    for labels in (soft, soft.round()):
        assert_same_with_gradients(
            lambda z, y=labels: losses.sigmoid_binary_cross_entropy(z, jnp.asarray(y)),
            lambda z, y=labels: torch.nn.functional.binary_cross_entropy_with_logits(
                z, torch.tensor(y), reduction="none"
            ),
            logits,
        )


def test_two_class_hinge(examples):
    """For two classes the largest margin is the only one; torch divides the sum by the number of classes."""
    logits, labels, _, _ = examples
    labels = labels % 2
    assert_same_with_gradients(
        lambda z: losses.multiclass_hinge_loss(z, jnp.asarray(labels)),
        lambda z: 2 * torch.nn.functional.multi_margin_loss(z, torch.tensor(labels), reduction="none"),
        logits[:, :2],
    )


def test_multiclass_and_binary_hinge_of_scikit_learn(examples):
    logits, labels, _, _ = examples
    labels[:5] = np.arange(5)  # scikit-learn finds the classes among the labels
    here = losses.multiclass_hinge_loss(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(here.mean(), sklearn_metrics.hinge_loss(labels, logits), **CLOSE)
    signs = np.where(labels > 1, 1, -1)
    here = losses.hinge_loss(jnp.asarray(logits[:, 0]), jnp.asarray(signs))
    np.testing.assert_allclose(here.mean(), sklearn_metrics.hinge_loss(signs, logits[:, 0]), **CLOSE)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal(gamma, examples):
    logits, labels, _, weights = examples

    def there(z):
        log_p = torch.log_softmax(z, -1)[torch.arange(8), torch.tensor(labels)]
        return -torch.tensor(weights)[labels] * (1 - log_p.exp()) ** gamma * log_p

    here = lambda z: losses.focal(z, jnp.asarray(labels), gamma=gamma, class_weights=jnp.asarray(weights))
    assert_same_with_gradients(here, there, logits)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.0)])
def test_sigmoid_focal(alpha, gamma, examples):
    logits, _, soft, _ = examples
    labels = soft.round()

    def there(z):  # Lin et al. (2017), eq. 5, as in torchvision.ops
        y = torch.tensor(labels)
        p_t = torch.where(y == 1, z.sigmoid(), 1 - z.sigmoid())
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none")
        return torch.where(y == 1, alpha, 1 - alpha) * (1 - p_t) ** gamma * entropy

    here = lambda z: losses.sigmoid_focal_loss(z, jnp.asarray(labels), alpha=alpha, gamma=gamma)
    assert_same_with_gradients(here, there, logits)


def test_kl_divergence(examples):
    logits, _, soft, _ = examples
    there = lambda q: torch.nn.functional.kl_div(q, torch.tensor(soft), reduction="none").sum(-1)
    log_q = np.asarray(jax.nn.log_softmax(jnp.asarray(logits)))
    assert_same_with_gradients(lambda q: losses.kl_divergence(q, jnp.asarray(soft)), there, log_q)
    assert_same_with_gradients(
        lambda q: losses.kl_divergence_with_log_targets(q, jnp.log(jnp.asarray(soft))), there, log_q
    )
