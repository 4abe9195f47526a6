"""LeNet-5 on the digits 0 to 4: the first half of an exercise in transfer, see transfer_digits.

Command: python -m train --config=pretrain_digits --workdir=runs/pretrain_digits
Expected: 99.7 % test accuracy (mean of seeds 0-4, standard error 0.2)
Hardware and time: one CPU core shared with other work, 4 s of training
"""

from ml_collections import ConfigDict

from train.configs import defaults


def get_config() -> ConfigDict:
    """The configuration."""
    config = defaults.get_config()
    config.epochs = 40
    config.batch_size = 32
    config.model.name = "lenet5"
    config.model.fields = {"activation": "relu", "pooling": "max", "padding": "SAME"}
    config.data.name = "digits"
    config.data.image_size = 16
    config.data.options = {"classes": (0, 1, 2, 3, 4)}
    config.augment.translate = 1
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 1e-2
    config.checkpoint.every_epochs = 5.0
    return config
