"""Every size class of convolutional network can learn 32 random images with random labels by heart."""

import jax
import optax
import pytest

import models


@pytest.mark.parametrize(
    ("name", "fields", "shape", "steps"),
    [
        ("lenet5", {}, (32, 32, 1), 40),
        ("lenet5", {"activation": "relu", "pooling": "max", "padding": "SAME"}, (28, 28, 1), 40),
        ("resnet20_cifar", {"width": 8}, (16, 16, 3), 40),
        pytest.param("resnet20_cifar_v2", {"width": 8}, (16, 16, 3), 60, marks=pytest.mark.slow),
        pytest.param("resnet18", {"width": 8}, (32, 32, 3), 40, marks=pytest.mark.slow),
        pytest.param("resnet50", {"width": 8, "zero_init_residual": True}, (32, 32, 3), 40, marks=pytest.mark.slow),
    ],
)
def test_32_examples_are_learnt_to_zero_error(name, fields, shape, steps):
    """Judged in evaluation mode, so that the running statistics have to be right as well."""
    images = jax.random.normal(jax.random.key(1), (32, *shape))
    labels = jax.random.randint(jax.random.key(2), (32,), 0, 10)
    model = models.create(name, num_classes=10, **fields)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(variables, moments):
        def loss(params):
            logits, updated = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

        gradients, updated = jax.grad(loss, has_aux=True)(variables["params"])
        updates, moments = optimizer.update(gradients, moments)
        return {"params": optax.apply_updates(variables["params"], updates), **updated}, moments

    moments = optimizer.init(variables["params"])
    for _ in range(steps):
        variables, moments = step(variables, moments)
    predictions = jax.jit(model.apply)(variables, images).argmax(axis=-1)
    assert (predictions == labels).all()
