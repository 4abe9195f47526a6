"""Policies and mixing in a training run: on any number of devices the same, and in training alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import random_dataset, small_config

from dl_core.errors import UsageError
from train import configuration
from train.run import make_feed, prepare

FIELDS = {"epochs": 100, "augment.strength": 0.5}
# as in test_parallel.py: float32 sums in another order, ten steps
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}


def prepared(**changes):
    return prepare(small_config(**FIELDS, **changes), dataset=random_dataset())


def parameters_after_training(steps=6, **changes):
    run, state = prepared(**changes)
    state, _ = make_feed(run, 0).run(state, 0, min(steps, run.steps_per_epoch), lambda *_: None)
    return jax.tree.map(np.asarray, run.parallel.to_global(state).params)


@pytest.mark.parametrize(("mix", "policy"), [("mix_up", "none"), ("cut_mix", "rand_augment")])
def test_mixed_batches_are_the_same_on_eight_devices(mix, policy):
    changes = {"augment.policy": policy, "augment.mix": mix}
    alone, together = (parameters_after_training(**changes, **{"parallel.devices": n}) for n in (1, 8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), together, alone)


@pytest.mark.parametrize(
    "changes", [{"augment.policy": "trivial_augment"}, {"augment.policy": "adaptive"}, {"augment.cut_out": 4}, {}]
)
def test_training_sees_changed_images_and_evaluation_does_not(changes):
    run, state = prepared(**{"augment.flip": False, "augment.crop_padding": 0, **changes})
    data = run.dataset.train
    batch = {
        "image": jnp.asarray(data.images), "label": jnp.asarray(data.labels), "row": jnp.arange(len(data)),
        "valid": jnp.ones(len(data), bool),
    }  # fmt: skip
    undropped = lambda key: run.task.loss_fn(state.params, state.model_state, batch, jax.random.key(key))[0]
    assert (float(undropped(0)) != float(undropped(1))) == bool(changes)
    np.testing.assert_allclose(
        run.task.evaluate_fn(state.variables, batch)[0], run.task.apply_fn(state.variables, batch["image"] / 255)
    )


@pytest.mark.parametrize("changes", [{"parallel.mode": "pmap"}, {"task": "regression"}])
def test_mixing_where_it_cannot_be_is_refused(changes):
    config = small_config(**{"augment.mix": "mix_up", **changes})
    with pytest.raises(UsageError, match=r"config.augment.mix is 'mix_up'.*or mix to 'none'"):
        configuration.validate(config)
