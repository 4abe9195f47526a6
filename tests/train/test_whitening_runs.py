"""What the shortest runs need: a first convolution set from the images, alternating flips, averages over views."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import random_dataset, small_config

from dl_core.augment.geometric import with_mirror_image
from dl_core.augment.photometric import normalize, to_float
from dl_core.errors import UsageError
from dl_core.whitening import patch_whitening
from train import tasks
from train.loop import train_and_evaluate
from train.run import make_feed, prepare
from train.trained import restore
from train.whitening import whiten_stem

STEM = {"model.name": "airbench94", "model.fields": {"channels": (4,)}, "model.whiten": "whiten"}


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_a_frozen_whitening_layer_is_that_of_the_training_images_to_the_end(mode, tmp_path, monkeypatch):
    dataset = random_dataset()
    monkeypatch.setattr(tasks, "load_data", lambda config, fold=0: dataset)
    changes = {"parallel.mode": mode, "parallel.devices": 2, "transfer.freeze": ("whiten/kernel",)}
    config = small_config(**STEM, **changes, **{"average.name": "ema"})
    train_and_evaluate(config, tmp_path / "run", stream=io.StringIO())
    trained = restore(tmp_path / "run", weights="average")
    images = normalize(to_float(dataset.train.images), jnp.asarray(trained.info.mean), jnp.asarray(trained.info.std))
    kernel = trained.variables["params"]["whiten"]["kernel"]
    np.testing.assert_allclose(kernel, patch_whitening(images, 2), rtol=1e-4, atol=1e-4)


def test_a_layer_that_cannot_be_whitened_is_refused():
    with pytest.raises(UsageError, match=r"names no convolution: 'stem'; the model has conv1, "):
        whiten_stem(*prepare(small_config(**{"model.whiten": "stem"}), dataset=random_dataset()))
    with pytest.raises(UsageError, match=r"at least 2 × 3² × 1 = 18 outputs; 'conv1' has 3×3×1×4"):
        whiten_stem(*prepare(small_config(**{"model.whiten": "conv1"}), dataset=random_dataset()))


def test_evaluation_averages_probabilities_over_the_views_and_explanations_see_one():
    config = small_config(**{"augment.test_views": "mirror"})
    run, state = prepare(config, dataset=random_dataset())
    test = run.dataset.test
    batch = {"image": jnp.asarray(test.images), "label": jnp.asarray(test.labels), "valid": jnp.ones(24, bool)}
    logits, _ = run.task.evaluate_fn(state.variables, batch)
    views = with_mirror_image(to_float(batch["image"]))
    single = [jax.nn.softmax(run.task.apply_fn(state.variables, views[:, i])) for i in range(2)]
    np.testing.assert_allclose(jax.nn.softmax(logits), (single[0] + single[1]) / 2, atol=1e-6)


@pytest.mark.parametrize("changes", [{"loop": "host"}, {"loop": "compiled"}, {"data.placement": "grain"}])
def test_the_loss_is_told_which_examples_it_sees_in_which_epoch(changes, monkeypatch):
    """Two epochs of three steps, by a loss whose metrics repeat what the batch says."""
    dataset, make_task = random_dataset(), tasks.make_task

    def told(config, info):
        def loss_fn(params, model_state, batch, key):
            loss, (state, metrics) = make_task(config, info).loss_fn(params, model_state, batch, key)
            return loss, (state, {**metrics, "index": batch["index"] * 1.0, "epoch": batch["epoch"] * 1.0})

        return make_task(config, info)._replace(loss_fn=loss_fn)

    monkeypatch.setattr(tasks, "make_task", told)
    run, state = prepare(small_config(**{"parallel.devices": 1}, **changes), dataset=dataset)
    feed = make_feed(run, 0)
    for epoch in range(2):
        state, metrics = feed.run(state, 3 * epoch, 3, lambda *_: None)
        np.testing.assert_array_equal(metrics["index"], [feed.rows(3 * epoch + step) for step in range(3)])
        np.testing.assert_array_equal(metrics["epoch"], np.full((3, 32), epoch))
    feed.close()
