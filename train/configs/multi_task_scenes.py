"""One LeNet-5 with three heads on procedural scenes: which shape, which colour, which filling.

Fixed weights 1; learned ones (Kendall et al., 2018): --config.multi_task.weighting=uncertainty

Command: python -m train --config=multi_task_scenes
Expected: 70.3 % of the labels right (seeds 0-4, standard error 0.6): kind 40.7, colour 96.5, fill 73.8; three networks
  of this size with one label each reach 76.6
Hardware and time: one CPU core shared with other work, 13 s of training
"""

from ml_collections import ConfigDict

from train.configs import defaults


def get_config() -> ConfigDict:
    """The configuration."""
    config = defaults.get_config()
    config.task = "multi_task"
    config.epochs = 20
    config.batch_size = 64
    config.model.name = "lenet5"
    config.model.fields = {"activation": "relu", "pooling": "max"}
    config.data.name = "scenes"
    config.data.options = {"target": "kind+colour+fill", "num_train": 2048}
    config.augment.flip = True
    config.augment.translate = 2
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 1e-2
    config.schedule.warmup_epochs = 0.5
    config.checkpoint.every_epochs = 10.0
    config.evaluate_with = "last"
    return config
