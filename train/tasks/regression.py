"""Regression: a value for each image, or an angle of 0 to 360 degrees.

`config.regression.head` says which:

    value   one number; trained on values standardised by the training split, reported in their own units.
    angle   two numbers, a vector whose direction is the angle: 359 and 1 degree are neighbours, for the loss, for the
            output and for the error that is reported.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dl_core import losses
from dl_core.augment import photometric
from dl_core.data import Dataset, Examples
from dl_core.ensembles import average_outputs
from dl_core.errors import UsageError, unknown_name
from dl_core.metrics import bootstrap_interval, circular_mean, r2_score, root_mean_squared_error
from dl_core.regularization import l1_penalty, l2_penalty
from train.report.pages import Page, RunRecord
from train.report.regression import regression_pages
from train.tasks import Batch, DatasetInfo, Sums, Task, classification

Outputs = Float[Array, "batch outputs"]
Values = Float[Array, " batch"]
LossFn = Callable[[Outputs, Values], Values]


def _of_value(loss: Callable[..., Array], outputs: Outputs, targets: Values, **options: Any) -> Values:
    return loss(outputs[:, 0], targets, **options)


def _gaussian(outputs: Outputs, targets: Values) -> Values:
    return losses.gaussian_nll(outputs[:, 0], outputs[:, 1], targets)


def _squared_vector(outputs: Outputs, degrees: Values) -> Values:
    return losses.squared_error(outputs, losses.unit_vector(degrees)).sum(axis=-1)


VALUE_LOSSES = {
    **{
        loss.__name__: loss
        for loss in (losses.squared_error, losses.l1, losses.smooth_l1, losses.huber_loss, losses.log_cosh)
    },
    "gaussian_nll": _gaussian,  # two outputs: the value and the logarithm of its variance
}
ANGLE_LOSSES = {
    "cosine_angle": losses.cosine_angle_loss,
    "von_mises": losses.von_mises_nll,
    "squared_error": _squared_vector,
}
LOSSES = {"value": VALUE_LOSSES, "angle": ANGLE_LOSSES}


def make_loss(options: Any) -> LossFn:
    """(outputs [batch, outputs], targets [batch]) -> losses [batch], from `config.regression`.

    Raises:
      UsageError: an unknown head, loss or option.
    """
    if options.head not in LOSSES:
        raise unknown_name("head", options.head, LOSSES)
    known = LOSSES[options.head]
    if options.loss not in known:
        raise unknown_name(f"loss of the head {options.head!r}", options.loss, known)
    loss = known[options.loss]
    legal = list(inspect.signature(loss).parameters)[2:]  # after predictions and targets
    for option in options.options:
        if option not in legal:
            raise UsageError(f"the loss {options.loss!r} has no option {option!r}; it has {', '.join(legal) or 'none'}")
    if options.head == "angle" or loss is _gaussian:
        return partial(loss, **options.options)
    return partial(_of_value, loss, **options.options)


def load_data(config: Any, *, fold: int = 0) -> Dataset:
    """The data set that `config.data` names, its labels as float32; corrupted where asked for (training split only)."""
    dataset = classification.load_named(config, fold=fold)
    as_values = lambda part: dataclasses.replace(part, labels=part.labels.astype(np.float32))
    dataset = dataclasses.replace(dataset, **{name: as_values(part) for name, part in dataset.splits.items()})
    if dataset.train.labels.ndim != 1:
        raise UsageError(f"regression predicts one value an image, and {dataset.name!r} has several")
    if len(dataset.class_names) != 1:  # class numbers taken as values, such as a count
        dataset = dataclasses.replace(dataset, class_names=("value",))
    return dataclasses.replace(dataset, train=_corrupt_labels(dataset.train, config))


def _corrupt_labels(train: Examples, config: Any) -> Examples:
    """A wrong value is that of another training image."""
    random = np.random.default_rng(config.seed)
    shuffled = random.permutation(train.labels)
    wrong = random.random(len(train)) < (1 if config.data.shuffle_labels else config.data.label_noise)
    return dataclasses.replace(train, labels=np.where(wrong, shuffled, train.labels))


def make_task(config: Any, info: DatasetInfo) -> Task:
    """Regression with the head and the loss that the config says."""
    options = config.regression
    circular = options.head == "angle"
    if circular and (config.augment.flip or config.augment.alternate_flip):
        raise UsageError("config.augment.flip mirrors an image and not its angle: set it and alternate_flip to False")
    criterion = make_loss(options)
    num_outputs = 2 if circular or options.loss == "gaussian_nll" else 1
    model = classification.make_model(config, info, num_outputs=num_outputs)
    augment = classification.make_augmentation(config.augment)
    mean, std = jnp.asarray(info.mean), jnp.asarray(info.std)
    # an angle needs no scale; a constant value none to divide by
    centre, scale = (0.0, 1.0) if circular else (info.label_mean[0], info.label_std[0] or 1.0)
    undropped = model.clone(dropout=0.0) if hasattr(model, "dropout") else model

    def init(key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, *info.image_shape)))

    def standard(labels: Values) -> Values:
        return (labels - centre) / scale

    def raw(outputs: Outputs) -> Outputs:
        """Outputs in units of the labels; a logarithm of a variance shifts by that of the scale's square."""
        if num_outputs == 1 or circular:
            return outputs * scale + centre
        return jnp.stack([outputs[:, 0] * scale + centre, outputs[:, 1] + 2 * np.log(scale)], axis=1)

    def error(outputs: Outputs, labels: Values) -> Values:
        return errors(outputs, labels, circular=circular)

    def loss_fn(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> tuple[Array, Any]:
        augment_key, dropout_key = jax.random.split(key)
        images = photometric.normalize(augment(augment_key, batch), mean, std)
        outputs, updated = model.apply(
            {"params": params, **model_state}, images, train=True,
            mutable=list(model_state), rngs={"dropout": dropout_key},
        )  # fmt: skip
        plain = criterion(outputs, standard(batch["label"])).mean()
        loss = plain
        if config.loss.l1:
            loss += config.loss.l1 * l1_penalty(params)
        if config.loss.l2:
            loss += config.loss.l2 * l2_penalty(params)
        mae = error(raw(outputs), batch["label"]).mean()
        return loss, (dict(updated), {"loss": plain, "objective": loss, "mae": mae})

    def standard_outputs(variables: Any, images: Array) -> Outputs:
        return model.apply(variables, photometric.normalize(images, mean, std), train=False)

    def apply_fn(variables: Any, images: Float[Array, "batch height width channels"]) -> Outputs:
        return raw(standard_outputs(variables, images))

    def evaluate_fn(variables: Any, batch: Batch) -> tuple[Array, Sums]:
        outputs = standard_outputs(variables, photometric.to_float(batch["image"]))
        valid = batch["valid"].astype(jnp.float32)
        lost, off = criterion(outputs, standard(batch["label"])), error(raw(outputs), batch["label"])
        count = valid.sum()
        return raw(outputs), {"loss": ((lost * valid).sum(), count), "mae": ((off * valid).sum(), count)}

    def batch_stats_fn(variables: Any, batch: Batch) -> Any:
        images = photometric.normalize(photometric.to_float(batch["image"]), mean, std)
        _, updates = undropped.apply(variables, images, train=True, mutable=["batch_stats"])
        return updates["batch_stats"]

    return Task(
        init=init, loss_fn=loss_fn, evaluate_fn=evaluate_fn, batch_stats_fn=batch_stats_fn, apply_fn=apply_fn,
        rank=rank, summarise=partial(summarise, circular=circular), pages=partial(pages, circular=circular),
        metric="mae", combine=partial(average_outputs, average="directions" if circular else "logits"),
        answer=partial(answer, circular=circular), baselines=partial(baselines, circular=circular),
    )  # fmt: skip


def predictions(outputs: Float[Array | np.ndarray, "batch outputs"], *, circular: bool) -> Values:
    """The predicted values, or angles in degrees in [0, 360), from a model's outputs."""
    return losses.angle_of(outputs) if circular else jnp.asarray(outputs)[:, 0]


def errors(
    outputs: Float[Array | np.ndarray, "batch outputs"], labels: Float[Array | np.ndarray, " batch"], *, circular: bool
) -> Values:
    """Absolute errors: in the units of the labels, or degrees in [0, 180]."""
    distance = losses.circular_distance if circular else losses.l1
    return distance(predictions(outputs, circular=circular), labels)


def rank(metrics: Mapping[str, float]) -> tuple[float, ...]:
    """A lower validation error is better; among equals, a lower loss."""
    return -metrics["mae"], -metrics["loss"]


def summarise(labels: np.ndarray, outputs: np.ndarray, *, circular: bool) -> dict[str, Any]:
    """The figures of the test split for `summary.json`.

    Args:
      labels: float [n].
      outputs: float [n, outputs].
      circular: whether they are angles.

    Returns:
      test_mae with its 95 % bootstrap interval, test_median_absolute_error; for angles the shares within 5 and 10
      degrees, for values test_rmse and test_r2. Python floats.
    """
    off = errors(outputs, labels, circular=circular)
    scores: dict[str, Any] = {"test_mae": float(off.mean())}
    if len(labels) > 1:
        interval = bootstrap_interval(jnp.mean, off, key=jax.random.key(0), method="percentile")
        scores["test_mae_interval"] = (float(interval.low), float(interval.high))
    scores["test_median_absolute_error"] = float(jnp.median(off))
    if circular:
        within = {f"test_within_{degrees}_degrees": float((off <= degrees).mean()) for degrees in (5, 10)}
        return {**scores, **within, "test_unit": "°"}
    values = predictions(outputs, circular=False)
    rmse, r2 = root_mean_squared_error(labels, values), r2_score(labels, values)
    return {**scores, "test_rmse": float(rmse), "test_r2": float(r2)}


def baselines(dataset: Dataset, *, circular: bool) -> dict[str, Any]:
    """The test error of the best answer without an image: the mean direction, or the median value, of training."""
    train, test = dataset.train.labels, dataset.test.labels
    constant = np.full_like(test, circular_mean(train) if circular else np.median(train))
    distance = losses.circular_distance if circular else losses.l1
    return {"constant_mae": float(distance(constant, test).mean())}


def answer(class_names: tuple[str, ...], output: np.ndarray, top: int, *, circular: bool) -> tuple[dict[str, Any], str]:
    """What `train.predict` says of one image: its value or angle; see `Task.answer`."""
    del top
    value = float(predictions(output[None], circular=circular)[0])
    entries: dict[str, Any] = {"name": class_names[0], "value": value}
    if circular:
        return entries, f"{class_names[0]} {value:.1f}°"
    return entries, f"{class_names[0]} {value:.4g}"


def pages(record: RunRecord, *, circular: bool) -> list[Page]:
    """The report's pages of a regression run."""
    values = np.asarray(predictions(record.logits, circular=circular))
    off = np.asarray(errors(record.logits, record.labels, circular=circular))
    return regression_pages(record, values, off, period=360.0 if circular else None)
