"""Image classification: one label an image; with `config.hardening`, trained against adversarial changes of it."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import models
from dl_core import data as datasets
from dl_core.attacks.hardening import divergence
from dl_core.augment import geometric, mixing, photometric, policies
from dl_core.augment.adaptive import adaptive_augment
from dl_core.augment.automatic import rand_augment, trivial_augment
from dl_core.data import Dataset
from dl_core.errors import UsageError
from dl_core.losses import cross_entropy
from dl_core.metrics.classification_report import classification_summary
from dl_core.regularization import l1_penalty, l2_penalty
from models.auxiliary import auxiliary_loss
from train import hardening
from train.baselines import baseline_figures
from train.report.classification import classification_pages
from train.report.pages import Page, RunRecord
from train.tasks import Batch, DatasetInfo, Sums, Task


def load_data(config: Any, *, fold: int = 0) -> Dataset:
    """The data set that `config.data` names, with label noise where asked for (training split only)."""
    dataset = load_named(config, fold=fold)
    if np.issubdtype(dataset.train.labels.dtype, np.floating):
        raise UsageError(f"data set {dataset.name!r} has values, not classes; set config.task to 'regression'")
    if dataset.train.labels.ndim > 1:
        raise UsageError(f"data set {dataset.name!r} has several labels an image; set config.task to 'multi_task'")
    return dataclasses.replace(dataset, train=_corrupt_labels(dataset, config))


def load_named(config: Any, *, fold: int = 0) -> Dataset:
    """The data set that `config.data` names, as it is."""
    options = config.data
    return datasets.load(
        options.name,
        seed=config.seed,
        data_dir=options.data_dir or None,
        image_size=options.image_size or None,
        split=tuple(options.split),
        on_error=options.on_error,
        folds=config.folds,
        fold=fold,
        **options.options,
    )


def _corrupt_labels(dataset: Dataset, config: Any) -> datasets.Examples:
    train, noise = dataset.train, config.data.label_noise
    if not 0 <= noise <= 1:
        raise UsageError(f"data.label_noise must be in [0, 1], got {noise}")
    if not (noise or config.data.shuffle_labels):
        return train
    random = np.random.default_rng(config.seed)
    labels = random.permutation(train.labels) if config.data.shuffle_labels else train.labels
    wrong = random.random(len(labels)) < noise
    other = (labels + random.integers(1, dataset.num_classes, len(labels))) % dataset.num_classes
    return dataclasses.replace(train, labels=np.where(wrong, other, labels).astype(np.int32))


def make_model(config: Any, info: DatasetInfo, *, num_outputs: int | None = None) -> Any:
    """The model that `config.model` names, for the classes of `info`, or with so many outputs."""
    outputs = num_outputs or len(info.class_names)
    model = models.create(config.model.name, num_classes=outputs, **config.model.fields)
    settings = {"dtype": jnp.dtype(config.model.dtype)}
    if config.parallel.mode == "pmap":
        settings["axis_name"] = "data"
    legal = {field.name for field in dataclasses.fields(model)}
    return model.clone(**{name: value for name, value in settings.items() if name in legal})


def make_augmentation(options: Any) -> Callable[[jax.Array, Batch], Array]:
    """(key, batch) -> images in [0, 1], augmented as `config.augment` says, each by its own key."""
    operations = []
    if options.crop_padding:
        operations.append(lambda key, x: geometric.random_crop(key, x, padding=options.crop_padding))
    if options.translate:
        operations.append(lambda key, x: geometric.random_translate(key, x, max_shift=options.translate))
    if options.flip:
        operations.append(geometric.random_flip)
    operations += make_policy(options)
    if options.cut_out:
        operations.append(lambda key, x: mixing.cut_out(key, x, size=options.cut_out))
    augment = policies.sequence(*operations)

    def images_of(key: jax.Array, batch: Batch) -> Array:
        images = photometric.to_float(batch["image"])
        if options.alternate_flip:
            images = geometric.alternating_flip(images, batch["index"], batch["epoch"])
        return augment(jax.vmap(jax.random.fold_in, (None, 0))(key, batch["row"]), images)

    return images_of


def make_policy(options: Any) -> list[policies.Augmentation]:
    """The policy that `config.augment.policy` names, at `config.augment.strength`, as a list of one or none."""
    magnitude = round(30 * options.strength)
    return {
        "none": [],
        "rand_augment": [lambda key, x: rand_augment(key, x, magnitude=magnitude)],
        "trivial_augment": [trivial_augment],
        "adaptive": [lambda key, x: adaptive_augment(key, x, p=options.strength, clip=True)],
    }[options.policy]


def make_views(options: Any) -> Any:
    """images -> views [batch, views, height, width, channels] to average predictions over, or None."""

    def shifted(images: Float[Array, "batch height width channels"]) -> Float[Array, "batch 10 height width channels"]:
        by = options.test_padding
        padded = jnp.pad(images, ((0, 0), (by, by), (by, by), (0, 0)), mode="edge")
        return geometric.ten_crop(padded, size=images.shape[1:3])

    return {"none": None, "mirror": geometric.with_mirror_image, "ten_crop": shifted}[options.test_views]


def make_task(config: Any, info: DatasetInfo, *, example_loss: Callable[..., Array] | None = None) -> Task:
    """Softmax classification with cross-entropy, label smoothing and penalties as the config says.

    Args:
      config: of the run.
      info: of its data.
      example_loss: (logits, labels, augmented images in [0, 1]) -> one loss per example, in the place of cross-entropy.
        Of a hardened run its images are the clean ones, and the logits those of the changed ones (trades: clean).
    """
    model = make_model(config, info)
    augment = make_augmentation(config.augment)
    mean, std = jnp.asarray(info.mean), jnp.asarray(info.std)
    loss_options = config.loss
    mix = {"none": None, "mix_up": mixing.mix_up, "cut_mix": mixing.cut_mix}[config.augment.mix]
    options, recipe = config.hardening, config.hardening.recipe
    undropped = model.clone(dropout=0.0) if hasattr(model, "dropout") else model

    def init(key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, *info.image_shape)))

    def loss_fn(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> tuple[Array, Any]:
        augment_key, dropout_key = jax.random.split(key)
        augmented, labels = augment(augment_key, batch), batch["label"]
        if mix is not None:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(augment_key, 1), batch["row"])
            one_hot = jax.nn.one_hot(labels, len(info.class_names))
            augmented, labels = mix(keys, augmented, one_hot, alpha=config.augment.mix_alpha, per_row=True)

        def forward(params: Any, state: Any, images: Array) -> tuple[Array, Any]:
            return model.apply(
                {"params": params, **state}, photometric.normalize(images, mean, std), train=True,
                mutable=[*model_state, "auxiliary"], rngs={"dropout": dropout_key},
            )  # fmt: skip

        def changed(attacked_loss: Callable[[Array], Array]) -> Array:
            """The images that raise a loss of the logits, parameters held."""
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(augment_key, 2), batch["row"])
            held = jax.lax.stop_gradient((params, model_state))
            return hardening.harden(options, lambda x: attacked_loss(forward(*held, x)[0]), augmented, keys)

        shown = augmented
        if recipe == "free":
            shown = jnp.clip(augmented + batch["perturbation"], 0, 1)
        elif recipe in ("madry", "fast"):
            shown = changed(lambda logits: cross_entropy(logits, labels))
        logits, updated = forward(params, model_state, shown)
        auxiliary = updated.pop("auxiliary", {})
        criterion = partial(cross_entropy, label_smoothing=loss_options.label_smoothing)
        plain = cross_entropy(logits, labels).mean()  # what is reported: the measure of validation and test
        loss = criterion(logits, labels).mean() if loss_options.label_smoothing else plain
        if example_loss is not None:
            loss = example_loss(logits, labels, augmented).mean()
        is_right = lambda logits: (logits.argmax(-1) == batch["label"]).mean()
        metrics = {"accuracy": is_right(logits)}  # of mixed images: of the one with its own key
        if recipe == "trades":
            shown = changed(partial(divergence, jax.lax.stop_gradient(logits)))
            adversarial_logits, updated = forward(params, updated, shown)
            updated.pop("auxiliary", None)
            loss += options.beta * divergence(logits, adversarial_logits).mean()
            metrics["robust_accuracy"] = is_right(adversarial_logits)
        loss += auxiliary_loss(model, auxiliary, criterion, labels)
        if loss_options.l1:
            loss += loss_options.l1 * l1_penalty(params)
        if loss_options.l2:
            loss += loss_options.l2 * l2_penalty(params)
        return loss, (dict(updated), {"loss": plain, "objective": loss, **metrics})

    def apply_fn(variables: Any, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        return model.apply(variables, photometric.normalize(images, mean, std), train=False)

    views = make_views(config.augment)
    averaged_fn = policies.average_over_views(apply_fn, views) if views else apply_fn

    def evaluate_fn(variables: Any, batch: Batch) -> tuple[Array, Sums]:
        images = photometric.to_float(batch["image"])
        logits = averaged_fn(variables, images)
        valid = batch["valid"].astype(jnp.float32)
        losses = cross_entropy(logits, batch["label"])
        correct = logits.argmax(-1) == batch["label"]
        count = valid.sum()
        sums = {"loss": ((losses * valid).sum(), count), "accuracy": ((correct * valid).sum(), count)}
        predict = partial(averaged_fn, variables)
        return logits, sums | hardening.robust_sums(options, predict, images, batch["label"], valid=valid)

    def batch_stats_fn(variables: Any, batch: Batch) -> Any:
        images = photometric.normalize(photometric.to_float(batch["image"]), mean, std)
        _, updates = undropped.apply(variables, images, train=True, mutable=["batch_stats"])
        return updates["batch_stats"]

    return Task(
        init=init, loss_fn=loss_fn, evaluate_fn=evaluate_fn, batch_stats_fn=batch_stats_fn, apply_fn=apply_fn,
        rank=rank, summarise=summarise, pages=pages,
        baselines=partial(baseline_figures, name=config.baseline, seed=config.seed),
    )  # fmt: skip


def rank(metrics: Mapping[str, float]) -> tuple[float, ...]:
    """Higher validation accuracy is better, of a hardened run first that under attack; among equals, lower loss.

    A network goes on to overfit its attacks long after it has stopped to gain from them (Rice et al., 2020).
    """
    robust = (metrics["robust_accuracy"],) if "robust_accuracy" in metrics else ()
    return *robust, metrics["accuracy"], -metrics["loss"]


def summarise(labels: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    """The figures of the test split for `summary.json`: each key of `classification_summary` with `test_` before it."""
    return {f"test_{name}": value for name, value in classification_summary(labels, logits).items()}


def pages(record: RunRecord) -> list[Page]:
    """The report's pages of a classification run."""
    first, *others = classification_pages(record)
    return [first, *hardening.pages(record.config.get("hardening", {}), record.summary), *others]
