"""Several classifications of one image by one network: a trunk, and a linear head for each question.

The data set has labels int32 [n, heads], and in the place of class names one text a head, "colour: red|green|blue". The
loss is the heads' cross-entropies, weighted by fixed numbers or by learned uncertainty (`dl_core.losses.multi_task`);
label smoothing and penalties as in classification. What is reported is the plain sum of the cross-entropies, so that
runs with different weights compare, and the accuracy: of each head, and their mean.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dl_core.augment import photometric
from dl_core.data import Dataset
from dl_core.errors import UsageError
from dl_core.losses import cross_entropy, uncertainty_weighting
from dl_core.metrics.classification_report import classification_summary
from dl_core.regularization import l1_penalty, l2_penalty
from models.multi_head import split_logits
from train.report.classification import classification_pages
from train.report.diagnosis import diagnose
from train.report.pages import Page, RunRecord, Section
from train.report.summary import percent, run_sections
from train.report.training import training_page
from train.tasks import Batch, DatasetInfo, Sums, Task, class_answer, classification

LOG_VARIANCES = "head_log_variances"  # beside the network's modules among the parameters


def heads_of(class_names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The classes of each head, from texts such as "colour: red|green|blue" (no arrays).

    Raises:
      UsageError: a text of another form, as a data set with one label an image has.
    """
    heads = {}
    for text in class_names:
        name, colon, classes = text.partition(": ")
        if not colon:
            raise UsageError(
                f"the task multi_task needs data with several labels an image, e.g. scenes with "
                f'config.data.options.target="kind+colour"; these have the classes {", ".join(class_names[:4])}'
            )
        heads[name] = tuple(classes.split("|"))
    return heads


def load_data(config: Any, *, fold: int = 0) -> Dataset:
    """The data set that `config.data` names; each label is corrupted by itself where that is asked for."""
    dataset = classification.load_named(config, fold=fold)
    heads = heads_of(dataset.class_names)
    noise, train = config.data.label_noise, dataset.train
    if not (noise or config.data.shuffle_labels):
        return dataset
    random, labels = np.random.default_rng(config.seed), train.labels
    if config.data.shuffle_labels:
        labels = random.permutation(labels)
    sizes = np.array([len(classes) for classes in heads.values()])
    wrong = random.random(labels.shape) < noise
    labels = np.where(wrong, (labels + random.integers(1, sizes[None], labels.shape)) % sizes[None], labels)
    return dataclasses.replace(dataset, train=dataclasses.replace(train, labels=labels.astype(np.int32)))


def make_task(config: Any, info: DatasetInfo) -> Task:
    """Softmax classification by several heads, with the weights that `config.multi_task` says."""
    names = heads_of(info.class_names)
    heads = {name: len(classes) for name, classes in names.items()}
    model = classification.make_model(config, info, num_outputs=sum(heads.values()))
    augment = classification.make_augmentation(config.augment)
    mean, std = jnp.asarray(info.mean), jnp.asarray(info.std)
    undropped = model.clone(dropout=0.0) if hasattr(model, "dropout") else model
    options, learned = config.loss, config.multi_task.weighting == "uncertainty"
    weights = jnp.asarray(config.multi_task.weights or (1.0,) * len(heads), jnp.float32)
    if len(weights) != len(heads):
        raise UsageError(f"config.multi_task.weights has {len(weights)} numbers for the heads {', '.join(heads)}")

    def init(key: jax.Array) -> Any:
        variables = model.init(key, jnp.zeros((1, *info.image_shape)))
        if not learned:
            return variables
        return {**variables, "params": {**variables["params"], LOG_VARIANCES: jnp.zeros(len(heads))}}

    def cross_entropies(logits: Array, labels: Array, **smoothing: Any) -> Float[Array, "batch heads"]:
        parts = enumerate(split_logits(logits, heads).values())
        return jnp.stack([cross_entropy(part, labels[:, i], **smoothing) for i, part in parts], axis=-1)

    def hits(logits: Array, labels: Array) -> dict[str, Float[Array, " batch"]]:
        parts = enumerate(split_logits(logits, heads).items())
        right = {f"accuracy_{name}": (part.argmax(-1) == labels[:, i]) * 1.0 for i, (name, part) in parts}
        return {"accuracy": sum(right.values()) / len(right), **right}

    def loss_fn(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> tuple[Array, Any]:
        augment_key, dropout_key = jax.random.split(key)
        images = photometric.normalize(augment(augment_key, batch), mean, std)
        log_variances = params.get(LOG_VARIANCES)
        network = _network(params)
        logits, updated = model.apply(
            {"params": network, **model_state}, images, train=True,
            mutable=[*model_state], rngs={"dropout": dropout_key},
        )  # fmt: skip
        labels = batch["label"]
        losses = cross_entropies(logits, labels, label_smoothing=options.label_smoothing)
        loss = (uncertainty_weighting(losses, log_variances) if learned else losses @ weights).mean()
        if options.l1:
            loss += options.l1 * l1_penalty(network)
        if options.l2:
            loss += options.l2 * l2_penalty(network)
        metrics = {name: value.mean() for name, value in hits(logits, labels).items()}
        if learned:
            metrics |= {f"weight_{name}": jnp.exp(-log_variances[i]) for i, name in enumerate(heads)}
        plain = cross_entropies(logits, labels).sum(axis=-1).mean()
        return loss, (dict(updated), {"loss": plain, "objective": loss, **metrics})

    def apply_fn(variables: Any, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        network = {**variables, "params": _network(variables["params"])}
        return model.apply(network, photometric.normalize(images, mean, std), train=False)

    def evaluate_fn(variables: Any, batch: Batch) -> tuple[Array, Sums]:
        logits = apply_fn(variables, photometric.to_float(batch["image"]))
        valid = batch["valid"].astype(jnp.float32)
        values = {"loss": cross_entropies(logits, batch["label"]).sum(axis=-1), **hits(logits, batch["label"])}
        return logits, {name: ((value * valid).sum(), valid.sum()) for name, value in values.items()}

    def batch_stats_fn(variables: Any, batch: Batch) -> Any:
        images = photometric.normalize(photometric.to_float(batch["image"]), mean, std)
        network = {**variables, "params": _network(variables["params"])}
        _, updates = undropped.apply(network, images, train=True, mutable=["batch_stats"])
        return updates["batch_stats"]

    return Task(
        init=init, loss_fn=loss_fn, evaluate_fn=evaluate_fn, batch_stats_fn=batch_stats_fn, apply_fn=apply_fn,
        rank=classification.rank, summarise=lambda labels, logits: summarise(heads, labels, logits), pages=pages,
        combine=lambda outputs: combine(heads, outputs), answer=answer,
    )  # fmt: skip


def _network(params: Any) -> Any:
    """The parameters of the network, without those of the loss."""
    return {name: value for name, value in params.items() if name != LOG_VARIANCES}


def combine(heads: Mapping[str, int], outputs: Float[Array, "members batch classes"]) -> Float[Array, "batch classes"]:
    """The outputs of an ensemble: the logarithm of the members' mean probabilities, head by head."""
    parts = [jax.nn.log_softmax(part) for part in split_logits(outputs, heads).values()]
    return jnp.concatenate([jax.nn.logsumexp(part, axis=0) - jnp.log(len(part)) for part in parts], axis=-1)


def answer(class_names: tuple[str, ...], output: np.ndarray, top: int) -> tuple[dict[str, Any], str]:
    """What `train.predict` says of one image: the most probable classes of each head."""
    names = heads_of(class_names)
    parts = split_logits(output, {name: len(classes) for name, classes in names.items()})
    answers = {name: class_answer(classes, parts[name], top) for name, classes in names.items()}
    text = "; ".join(f"{name}: {text}" for name, (_, text) in answers.items())
    return {name: entry["top"] for name, (entry, _) in answers.items()}, text


def summarise(
    heads: Mapping[str, int], labels: Int[np.ndarray, "n heads"], logits: Float[np.ndarray, "n classes"]
) -> dict[str, Any]:
    """The figures of the test split: of each head, their means, and the share of images with every head right."""
    figures: dict[str, Any] = {}
    right = np.ones(len(labels), bool)
    for i, (name, part) in enumerate(split_logits(logits, heads).items()):
        own = classification_summary(labels[:, i], part)
        for key in ("accuracy", "accuracy_interval", "majority_baseline", "calibration_error"):
            figures[f"test_{key}_{name}"] = own[key]
        right &= part.argmax(-1) == labels[:, i]
    for key in ("accuracy", "majority_baseline"):
        figures[f"test_{key}"] = float(np.mean([figures[f"test_{key}_{name}"] for name in heads]))
    return {**figures, "test_all_heads_right": float(right.mean())}


def pages(record: RunRecord) -> list[Page]:
    """An overview, the curves, a page of classification for each head, and the run."""
    names = heads_of(record.class_names)
    heads = {name: len(classes) for name, classes in names.items()}
    summary, rows = record.summary, [("head", "classes", "test accuracy", "95 %", "always the commonest")]
    for name, classes in names.items():
        low, high = summary[f"test_accuracy_interval_{name}"]
        accuracy, majority = (summary[f"test_{key}_{name}"] for key in ("accuracy", "majority_baseline"))
        rows.append((name, len(classes), percent(accuracy), f"{percent(low)} to {percent(high)}", percent(majority)))
    rows.append(("mean", "", percent(summary["test_accuracy"]), "", percent(summary["test_majority_baseline"])))
    text = f"{len(record.labels):,} test examples; every head right on {percent(summary['test_all_heads_right'])}."
    result = [Page("Result", [Section("In short", text, table=rows)])]
    if record.history:
        verdict = diagnose(record.history, num_classes=math.prod(heads.values()), measured_alike=summary)
        result.append(training_page(record.history, verdict))
    for i, (name, part) in enumerate(split_logits(record.logits, heads).items()):
        labels = record.labels[:, i].astype(np.int32)
        counts = dict(zip(names[name], np.bincount(labels, minlength=heads[name]).tolist(), strict=True))
        own = dataclasses.replace(
            record, history=[], summary={}, class_names=names[name], labels=labels, logits=part,
            class_balance={"test": counts},
        )  # fmt: skip
        result += [Page(f"Test: {name}", page.sections) for page in classification_pages(own) if page.title == "Test"]
    return [*result, Page("Run", run_sections(record))]
