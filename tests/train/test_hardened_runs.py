"""Adversarial training in a run: every recipe the same on any number of devices and ways to compile; off by default."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import random_dataset, small_config

from dl_core.attacks.balls import random_in_ball
from dl_core.attacks.hardening import divergence
from dl_core.attacks.projected import pgd
from dl_core.errors import UsageError
from dl_core.losses import cross_entropy
from train import configuration, hardening, loop
from train.loop import train_and_evaluate
from train.run import evaluate, make_feed, prepare
from train.tasks.classification import rank
from train.trained import restore
from train.writers import read_history

RECIPES = ("madry", "trades", "free", "fast")
FIELDS = {
    "epochs": 100,
    "hardening.eps": 0.1,
    "hardening.steps": 2,
    "hardening.replays": 2,
    "hardening.test_steps": 2,
    "hardening.clean_share": 0.25,
    # a step of the attack goes by the sign of the gradient, and a ReLU or maximum on the other side turns it
    "model.name": "mlp",
    "model.fields": {"hidden": (16,), "activation": "tanh"},
    "optimizer.name": "momentum",
}
# float32 sums in another order, as in test_parallel.py; and a pixel whose gradient is nearly zero goes the other way
TOLERANCE = {"rtol": 1e-3, "atol": 3e-4}


def prepared(recipe, **changes):
    return prepare(small_config(**{**FIELDS, "hardening.recipe": recipe, **changes}), dataset=random_dataset())


def parameters_after_training(recipe, steps=3, **changes):
    run, state = prepared(recipe, **changes)
    state, metrics = make_feed(run, 0).run(state, 0, steps, lambda *_: None)
    assert np.isfinite(metrics["loss"]).all()
    return jax.tree.map(np.asarray, run.parallel.to_global(state).params)


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), one, other)


def a_batch(run):
    data = run.dataset.train
    return {
        "image": jnp.asarray(data.images), "label": jnp.asarray(data.labels), "row": jnp.arange(len(data)),
        "valid": jnp.ones(len(data), bool),
    }  # fmt: skip


@functools.cache
def on_one_device(recipe):
    return parameters_after_training(recipe, **{"parallel.devices": 1})


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("madry", {"parallel.devices": 8}),
        ("madry", {"parallel.devices": 8, "parallel.mode": "pmap"}),
        ("trades", {"parallel.devices": 8}),
        ("free", {"parallel.devices": 8}),
        ("free", {"parallel.devices": 8, "parallel.mode": "pmap"}),
        ("free", {"parallel.devices": 1, "loop": "compiled"}),
    ],
    ids=["madry-8", "madry-pmap", "trades-8", "free-8", "free-pmap", "free-compiled"],
)
def test_a_recipe_trains_alike_however_it_is_compiled(recipe, changes):
    assert_close(parameters_after_training(recipe, **changes), on_one_device(recipe))


def test_recipes_train_differently():
    each = [on_one_device(recipe) for recipe in ("none", *RECIPES)]
    flat = [np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)]) for params in each]
    for i, one in enumerate(flat):
        for other in flat[:i]:
            assert np.abs(one - other).max() > 10 * TOLERANCE["atol"]


def test_batch_norm_and_dropout_take_part_and_only_the_loss_moves_the_statistics():
    changes = {"model.name": "wrn_28_10", "model.fields": {"stage_sizes": (1, 1), "widen": 1, "dropout": 0.3}}
    run, state = prepared("madry", **changes)
    batch, key = a_batch(run), jax.random.key(0)
    loss_fn = jax.jit(run.task.loss_fn)
    loss, (updated, _) = loss_fn(state.params, state.model_state, batch, key)
    again, (same, _) = loss_fn(state.params, state.model_state, batch, key)
    assert float(loss) == float(again)
    jax.tree.map(np.testing.assert_array_equal, updated, same)
    # one forward pass: the running means (from 0) keep 0.9 of themselves, or whatever the layer's momentum is
    plain = jax.jit(prepared("none", **changes)[0].task.loss_fn)
    _, (moved_once, _) = plain(state.params, state.model_state, batch, key)
    for path, var in jax.tree_util.tree_leaves_with_path(updated["batch_stats"]):
        if path[-1].key == "var":
            once = dict(jax.tree_util.tree_leaves_with_path(moved_once["batch_stats"]))[path]
            np.testing.assert_allclose(var, once, atol=0.05)  # twice would be another tenth of the way


def test_the_loss_of_a_recipe_is_that_of_images_within_eps():
    run, state = prepared("madry", **{"augment.flip": False, "augment.crop_padding": 0, "hardening.clean_share": 0.0})
    batch, key = a_batch(run), jax.random.key(0)
    loss = lambda run: float(run.task.loss_fn(state.params, state.model_state, batch, key)[1][1]["loss"])
    clean = prepared("none", **{"augment.flip": False, "augment.crop_padding": 0})[0]
    hardly = prepared("madry", **{"hardening.eps": 1e-6, "augment.flip": False, "augment.crop_padding": 0})[0]
    assert loss(run) > loss(clean) + 0.01
    np.testing.assert_allclose(loss(hardly), loss(clean), rtol=1e-4)


def test_trades_adds_beta_times_the_divergence_to_the_clean_loss():
    changes = {"augment.flip": False, "augment.crop_padding": 0}
    run, state = prepared("trades", **changes, **{"hardening.beta": 3.0})
    batch, key = a_batch(run), jax.random.key(0)
    objective, (_, metrics) = run.task.loss_fn(state.params, state.model_state, batch, key)
    logits = run.task.apply_fn(state.variables, batch["image"] / 255)
    np.testing.assert_allclose(metrics["loss"], cross_entropy(logits, batch["label"]).mean(), rtol=1e-5)
    assert float(objective) > float(metrics["loss"])
    weak, _ = prepared("trades", **changes, **{"hardening.beta": 1.5})[0].task.loss_fn(
        state.params, state.model_state, batch, key
    )
    np.testing.assert_allclose(objective - metrics["loss"], 2 * (weak - metrics["loss"]), rtol=1e-3)
    assert float(divergence(logits, logits).mean()) < 1e-6


@functools.cache
def accuracies(recipe):
    """Of a network for handwritten digits on its test split: (clean, under PGD-20 from a random start, eps = 0.15)."""
    changes = {
        "hardening.recipe": recipe, "hardening.eps": 0.15, "hardening.test_steps": 0, "model.name": "mlp",
        "model.fields": {"hidden": (64,)}, "optimizer.name": "adam", "optimizer.learning_rate": 3e-3,
        "augment.flip": False, "augment.crop_padding": 0, "parallel.devices": 1,
        "epochs": 5 if recipe == "free" else 20,
    }  # fmt: skip
    run, state = prepare(small_config(**changes))
    feed = make_feed(run, 0)
    for epoch in range(run.config.epochs):
        state, _ = feed.run(state, epoch * run.steps_per_epoch, run.steps_per_epoch, lambda *_: None)
    images, labels = run.dataset.test.arrays()
    images, labels = jnp.asarray(images) / 255, jnp.asarray(labels)
    options = {"eps": 0.15, "steps": 20, "step_size": 0.03, "key": jax.random.key(0)}
    robust = 1 - pgd(run.task.apply_fn, state.variables, images, labels, **options).success.mean()
    clean = (run.task.apply_fn(state.variables, images).argmax(axis=1) == labels).mean()
    return float(clean), float(robust)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_hardened_network_withstands_an_attack_that_breaks_a_standard_one(recipe):
    clean, robust = accuracies(recipe)
    assert clean > 0.85, accuracies(recipe)
    assert robust > accuracies("none")[1] + 0.15, (accuracies(recipe), accuracies("none"))


def test_free_training_by_hand():
    """Two replays of one batch: the parameters and δ move by the gradients of one and the same loss."""
    changes = {"augment.flip": False, "augment.crop_padding": 0, "hardening.clean_share": 0.0}
    changes |= {"parallel.devices": 1, "optimizer.name": "sgd", "schedule.name": "constant"}
    run, state = prepared("free", **changes)
    batch = {name: value[:32] for name, value in a_batch(run).items() if name != "row"}
    step = hardening.make_step(
        run.config.hardening, run.task.loss_fn, optax.sgd(0.05), seed=0, schedule=lambda count: 0.05
    )
    state = state.replace(opt_state=optax.sgd(0.05).init(state.params))
    after, metrics = step(state, batch)
    assert int(after.step) == 1
    network = lambda params, x: run.task.apply_fn({"params": params}, x)
    images, params = batch["image"] / 255, state.params
    δ = first_perturbation(run, batch)
    losses = []
    for _ in range(2):
        loss = lambda p, δ: cross_entropy(network(p, jnp.clip(images + δ, 0, 1)), batch["label"]).mean()
        value, (grads, ascent) = jax.value_and_grad(loss, argnums=(0, 1))(params, δ)
        losses.append(value)
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)
        δ = jnp.clip(δ + 0.1 * jnp.sign(ascent), -0.1, 0.1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.params, params)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)


def first_perturbation(run, batch):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 2)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(batch["image"])))
    return random_in_ball(keys, jnp.zeros(batch["image"].shape), run.config.hardening.eps, "linf")


def test_the_schedule_of_free_training_counts_updates_and_ends_with_the_run():
    run, state = prepared("free", **{"epochs": 2, "schedule.name": "linear", "hardening.replays": 3})
    feed, rates = make_feed(run, 0), []
    for epoch in range(2):
        state, metrics = feed.run(state, epoch * run.steps_per_epoch, run.steps_per_epoch, lambda *_: None)
        rates += list(metrics["learning_rate"])
    updates = 3 * run.total_steps
    expected = 0.05 * (1 - np.arange(updates) / updates)
    np.testing.assert_allclose(rates, expected.reshape(-1, 3).mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("recipe", ["free", pytest.param("madry", marks=pytest.mark.slow)])
def test_a_hardened_run_that_is_resumed_ends_like_an_unbroken_one(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("train.tasks.load_data", lambda *_, **__: random_dataset())
    config = small_config(**{**FIELDS, "hardening.recipe": recipe, "epochs": 2, "baseline": "none"})
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train_and_evaluate(config, unbroken)
    stopped = {"after": 0}

    class Killed(Exception):
        pass

    whole = loop._validate

    def validate_and_die(*arguments):
        if stopped["after"] == 1:
            raise Killed
        stopped["after"] += 1
        return whole(*arguments)

    monkeypatch.setattr(loop, "_validate", validate_and_die)
    with pytest.raises(Killed):
        train_and_evaluate(config, broken)
    monkeypatch.setattr(loop, "_validate", whole)
    train_and_evaluate(config, broken, resume=True)
    last = [restore(workdir, weights="last").variables for workdir in (unbroken, broken)]
    jax.tree.map(np.testing.assert_array_equal, *last)


def test_a_hardened_run_reports_its_accuracy_under_attack(tmp_path, monkeypatch):
    monkeypatch.setattr("train.tasks.load_data", lambda *_, **__: random_dataset())
    config = small_config(**{**FIELDS, "hardening.recipe": "fast", "epochs": 1, "baseline": "none"})
    train_and_evaluate(config, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for split in ("train", "validation", "test"):
        clean, one, many = (summary[f"{split}_{name}"] for name in ("accuracy", "fgsm_accuracy", "robust_accuracy"))
        assert clean >= one >= many >= 0
    (line,) = [line for line in read_history(tmp_path / "run") if line["split"] == "validation"]
    assert {"accuracy", "fgsm_accuracy", "robust_accuracy"} <= set(line)
    assert "Robustness" in (tmp_path / "run" / "report.html").read_text()


def test_robust_accuracy_does_not_depend_on_how_a_split_is_cut():
    run, state = prepared("madry")
    whole, _ = evaluate(run, state.variables, run.dataset.test)
    run.config.eval_batch_size = 8
    parts, _ = evaluate(run, state.variables, run.dataset.test)
    assert whole["robust_accuracy"] == pytest.approx(parts["robust_accuracy"])
    assert whole["robust_accuracy"] < whole["accuracy"]


def test_the_best_weights_are_the_most_robust_ones():
    accurate = {"accuracy": 0.9, "loss": 0.3}
    assert rank(accurate) == (0.9, -0.3)
    assert rank({**accurate, "robust_accuracy": 0.1}) < rank({"accuracy": 0.8, "loss": 0.5, "robust_accuracy": 0.7})


def test_a_network_that_fools_the_single_step_is_noticed():
    figures = {"validation_fgsm_accuracy": 0.85, "validation_robust_accuracy": 0.01}
    assert "catastrophic overfitting: accuracy 85.00 %" in hardening.warning(figures, "validation_")
    assert not hardening.warning({"fgsm_accuracy": 0.76, "robust_accuracy": 0.72})
    assert not hardening.warning({"accuracy": 0.9})
    options = {"recipe": "fast", "eps": 0.1, "norm": "linf", "test_steps": 20}
    (page,) = hardening.pages(options, {**figures, "validation_accuracy": 0.9})
    assert [section.heading for section in page.sections] == ["Warning", "Accuracy under attack"]
    assert hardening.pages(options, {"validation_accuracy": 0.9}) == []


def test_step_sizes_are_those_of_the_recipes_unless_given():
    options = small_config(**FIELDS).hardening
    expected = {"madry": 0.125, "trades": 0.125, "free": 0.1, "fast": 0.125}
    for options.recipe, size in expected.items():
        assert hardening.step_size(options) == pytest.approx(size)
    options.step_size = 0.03
    assert hardening.step_size(options) == 0.03


def test_the_clean_share_is_left_as_it_is():
    options = small_config(**FIELDS).hardening
    keys = jax.random.split(jax.random.key(0), 4000)
    radii = np.asarray(hardening.radii(options, keys))
    assert set(np.unique(radii)) == {0.0, np.float32(0.1)}
    assert abs((radii == 0).mean() - 0.25) < 0.03  # four standard errors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hardening.recipe": "mdary"}, "config.hardening.recipe is 'mdary'; legal values, nearest first: madry"),
        ({"hardening.norm": "l3"}, "config.hardening.norm is 'l3'"),
        ({"hardening.eps": 0.0}, "config.hardening.eps"),
        ({"hardening.step_size": -0.1}, "config.hardening.step_size"),
        ({"hardening.steps": 0}, "config.hardening.steps"),
        ({"hardening.beta": -1.0}, "config.hardening.beta"),
        ({"hardening.replays": 0}, "config.hardening.replays"),
        ({"hardening.clean_share": 1.0}, "config.hardening.clean_share"),
        ({"hardening.test_steps": -1}, "config.hardening.test_steps"),
        ({"hardening.recipe": "fast", "task": "regression"}, "which hardens a classification"),
        ({"hardening.recipe": "free", "accumulate": 2}, "set config.accumulate to 1"),
    ],
)
def test_nonsense_is_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        configuration.validate(small_config(**changes))
