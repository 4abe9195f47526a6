"""Auxiliary heads in a classification run: their losses are added with the model's weight, and only in training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import random_dataset, small_config

import models
from dl_core.losses import cross_entropy
from models.auxiliary import record_auxiliary_logits
from train.run import prepare


class TwoHeads(nn.Module):
    """A linear classifier, and another one beside it."""

    num_classes: int
    auxiliary_weight: float = 0.3

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        if train or self.is_initializing():
            record_auxiliary_logits(self, "side_logits", nn.Dense(self.num_classes, name="side")(x))
        return nn.Dense(self.num_classes, name="main")(x)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_objective_has_the_loss_of_every_head_and_the_report_that_of_the_last(smoothing, monkeypatch):
    monkeypatch.setattr(models, "create", lambda name, *, num_classes, **fields: TwoHeads(num_classes))
    plain = {"model.fields": {}, "augment.flip": False, "augment.crop_padding": 0, "loss.label_smoothing": smoothing}
    run, state = prepare(small_config(**plain), dataset=random_dataset())
    data = run.dataset.train
    batch = {"image": jnp.asarray(data.images), "label": jnp.asarray(data.labels), "row": jnp.arange(len(data))}
    loss, (_, metrics) = run.task.loss_fn(state.params, {}, batch, jax.random.key(0))

    logits = run.task.apply_fn(state.variables, batch["image"] / 255)
    swapped = {"params": {"main": state.params["side"], "side": state.params["main"]}}
    side_logits = run.task.apply_fn(swapped, batch["image"] / 255)
    mean = lambda logits, **options: cross_entropy(logits, batch["label"], **options).mean()
    expected = mean(logits, label_smoothing=smoothing) + 0.3 * mean(side_logits, label_smoothing=smoothing)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], mean(logits), rtol=1e-5)
