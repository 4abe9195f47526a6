"""What a configuration must satisfy before any work is done: legal names, ranges, and fields that agree.

Each check says the field, what it holds, what is legal and, where it helps, the nearest legal value. `fields` and
`options` are checked by the model, the optimiser and the schedule that take them. A data set is looked for, and its
options are checked, when it is loaded, which is the next thing that happens.
"""

import difflib
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from dl_core.errors import UsageError

CHOICES = {
    "loop": ("auto", "compiled", "host"),
    "evaluate_with": ("best", "last", "average"),
    "model.dtype": ("float32", "bfloat16"),
    "data.placement": ("auto", "device", "grain"),
    "data.on_error": ("skip", "raise"),
    "augment.policy": ("none", "rand_augment", "trivial_augment", "adaptive"),
    "augment.mix": ("none", "mix_up", "cut_mix"),
    "augment.test_views": ("none", "mirror", "ten_crop"),
    "hardening.recipe": ("none", "madry", "trades", "free", "fast"),
    "hardening.norm": ("linf", "l2", "l1"),
    "optimizer.decay": ("decoupled", "coupled"),
    "optimizer.decay_mask": ("kernels", "all"),
    "regression.head": ("value", "angle"),
    "multi_task.weighting": ("fixed", "uncertainty"),
    "average.name": ("none", "ema", "swa"),
    "parallel.mode": ("jit", "pmap"),
}

# field: the interval that its value lies in, as mathematicians write it
INTERVALS = {
    "seed": "[0, 2147483648)",
    "epochs": "[1, inf)",
    "max_steps": "[0, inf)",
    "batch_size": "[1, inf)",
    "eval_batch_size": "[1, inf)",
    "accumulate": "[1, inf)",
    "folds": "[1, inf)",
    "log_every": "[0, inf)",
    "data.image_size": "[0, inf)",
    "data.max_device_bytes": "[0, inf)",
    "data.workers": "[0, inf)",
    "data.label_noise": "[0, 1]",
    "augment.crop_padding": "[0, inf)",
    "augment.translate": "[0, inf)",
    "augment.strength": "[0, 1]",
    "augment.cut_out": "[0, inf)",
    "augment.mix_alpha": "(0, inf)",
    "augment.test_padding": "[0, inf)",
    "hardening.eps": "(0, inf)",
    "hardening.step_size": "[0, inf)",
    "hardening.steps": "[1, inf)",
    "hardening.beta": "[0, inf)",
    "hardening.replays": "[1, inf)",
    "hardening.clean_share": "[0, 1)",
    "hardening.test_steps": "[0, inf)",
    "optimizer.learning_rate": "(0, inf)",
    "optimizer.weight_decay": "[0, inf)",
    "optimizer.l1": "[0, inf)",
    "optimizer.clip_value": "[0, inf)",
    "optimizer.clip_norm": "[0, inf)",
    "optimizer.clip_adaptive": "[0, inf)",
    "transfer.layer_decay": "(0, 1]",
    "transfer.unfreeze_every_epochs": "[0, inf)",
    "distillation.temperature": "(0, inf)",
    "distillation.alpha": "[0, 1]",
    "schedule.warmup_epochs": "[0, inf)",
    "plateau.factor": "(0, 1]",
    "plateau.patience": "[1, inf)",
    "plateau.cooldown": "[0, inf)",
    "plateau.min_scale": "[0, 1]",
    "loss.label_smoothing": "[0, 1)",
    "loss.l1": "[0, inf)",
    "loss.l2": "[0, inf)",
    "average.decay": "[0, 1)",
    "average.start_epoch": "[0, inf)",
    "early_stopping.patience": "[0, inf)",
    "early_stopping.min_delta": "[0, inf)",
    "early_stopping.small_update": "[0, inf)",
    "early_stopping.small_update_patience": "[1, inf)",
    "early_stopping.budget_seconds": "[0, inf)",
    "parallel.devices": "[0, inf)",
    "parallel.fsdp": "[1, inf)",
    "parallel.model": "[1, inf)",
    "parallel.min_shard_size": "[0, inf)",
    "parallel.num_processes": "[1, inf)",
    "parallel.process_id": "[0, inf)",
    "checkpoint.every_epochs": "(0, inf)",
    "checkpoint.keep": "[1, inf)",
}


def validate(config: ConfigDict) -> None:
    """Checks a whole config (no arrays, no shapes).

    Args:
      config: with every field of train/configs/defaults.py.

    Raises:
      UsageError: the first thing found wrong.
    """
    for path, allowed in CHOICES.items():
        _check_choice(path, _get(config, path), allowed)
    from dl_core.optim.options import in_interval  # here and below: late, because they bring JAX with them

    for path, interval in INTERVALS.items():
        in_interval(f"config.{path}", _get(config, path), interval)
    _check_names(config)
    _check_agreement(config)
    _check_options(config)


def _get(config: ConfigDict, path: str) -> Any:
    for key in path.split("."):
        config = config[key]
    return config


def _check_choice(path: str, given: str, allowed: Iterable[str]) -> None:
    if given not in allowed:
        alike = lambda name: -difflib.SequenceMatcher(None, name, given.lower()).ratio()
        nearest_first = ", ".join(sorted(allowed, key=alike))
        raise UsageError(f"config.{path} is {given!r}; legal values, nearest first: {nearest_first}")


def _check_names(config: ConfigDict) -> None:
    """Names in the registries."""
    import dl_core.optim
    import models
    from train.baselines import BASELINES
    from train.tasks import TASKS

    _check_choice("task", config.task, TASKS)
    _check_choice("baseline", config.baseline, ("none", *BASELINES))
    _check_choice("optimizer.name", config.optimizer.name, dl_core.optim.OPTIMIZERS)
    # the plateau is a group of its own in a config, on top of any schedule
    _check_choice(
        "schedule.name", config.schedule.name, [name for name in dl_core.optim.SCHEDULES if name != "plateau"]
    )
    _check_choice("model.name", config.model.name, models.list_models())


def _check_agreement(config: ConfigDict) -> None:
    """Fields that are legal one by one and not together."""
    parallel = config.parallel
    if len(config.data.split) != 3 or min(config.data.split) <= 0 or abs(sum(config.data.split) - 1) > 1e-6:
        raise UsageError(
            f"config.data.split is {config.data.split}; it must be three positive shares that add up to 1, "
            "e.g. (0.7, 0.15, 0.15)"
        )
    for divisor, path in ((config.accumulate, "accumulate"), (parallel.num_processes, "parallel.num_processes")):
        if config.batch_size % divisor:
            multiple = -(-config.batch_size // divisor) * divisor
            raise UsageError(
                f"config.batch_size = {config.batch_size} is not a multiple of config.{path} = {divisor}; "
                f"the next multiple is {multiple}"
            )
    for value, path in (
        (config.schedule.warmup_epochs, "schedule.warmup_epochs"),
        (config.average.start_epoch if config.average.name != "none" else 0, "average.start_epoch"),
    ):
        if value >= config.epochs:
            raise UsageError(f"config.{path} = {value} must be less than config.epochs = {config.epochs}")
    if config.evaluate_with == "average" and config.average.name == "none":
        raise UsageError(
            "config.evaluate_with is 'average' and nothing is averaged: set config.average.name to ema or swa"
        )
    if config.task == "distillation" and not config.distillation.teacher:
        raise UsageError(
            "config.task is 'distillation': name its teacher, config.distillation.teacher=WORKDIR of a finished run"
        )
    if config.augment.mix != "none" and (config.task != "classification" or parallel.mode == "pmap"):
        raise UsageError(
            f"config.augment.mix is {config.augment.mix!r}, which mixes the labels of a classification over the whole "
            "batch: set config.task to 'classification' and config.parallel.mode to 'jit', or mix to 'none'"
        )
    recipe = config.hardening.recipe
    if recipe != "none" and config.task not in ("classification", "distillation"):
        raise UsageError(
            f"config.hardening.recipe is {recipe!r}, which hardens a classification: set config.task to "
            "'classification' or 'distillation', or recipe to 'none'"
        )
    if recipe == "free" and config.accumulate > 1:
        raise UsageError(
            "config.hardening.recipe 'free' updates the images beside the parameters, which accumulate > 1 cuts up: "
            "set config.accumulate to 1, or take the recipe 'fast'"
        )
    if config.transfer.freeze and (config.recompute_batch_stats or config.average.name == "swa"):
        raise UsageError(
            "config.transfer.freeze keeps BatchNorm's statistics, which recompute_batch_stats and the average 'swa' "
            "compute anew: use one or the other (the average 'ema' is free of this)"
        )
    if parallel.mode == "pmap" and (parallel.fsdp > 1 or parallel.model > 1):
        raise UsageError(
            "config.parallel.mode is 'pmap', which is data-parallel only: set fsdp and model to 1, or mode to 'jit'"
        )
    if parallel.process_id >= parallel.num_processes:
        raise UsageError(
            f"config.parallel.process_id is {parallel.process_id}; it must be less than "
            f"config.parallel.num_processes = {parallel.num_processes}"
        )
    if parallel.num_processes > 1 and not parallel.coordinator:
        raise UsageError(
            "config.parallel.num_processes is above 1: give config.parallel.coordinator, address:port of the first"
        )


def _check_options(config: ConfigDict) -> None:
    """Groups that take any key, by making what takes them; the number of classes and of steps does not matter here."""
    import dl_core.optim
    import models

    if config.task == "regression":
        from train.tasks.regression import make_loss

        make_loss(config.regression)
    options = config.optimizer
    names = ("weight_decay", "decay", "decay_mask", "l1", "clip_value", "clip_norm", "clip_adaptive")
    rate = dl_core.optim.schedule(
        config.schedule.name, learning_rate=options.learning_rate, total_steps=1000, **config.schedule.options
    )
    dl_core.optim.optimizer(options.name, rate, **{name: options[name] for name in names}, **options.options)
    models.create(config.model.name, num_classes=2, **config.model.fields)
