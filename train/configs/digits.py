"""LeNet-5 on the handwritten digits that scikit-learn brings along: the first run, no download.

1,797 images of 8×8 pixels, split 70/15/15 and enlarged to the 32×32 of LeCun et al. (1998).

Command: python -m train --config=digits
Expected: 99.5 % test accuracy (mean of seeds 0-4, standard deviation 0.6, lowest 98.9)
Hardware and time: two CPU cores shared with other work, 23 s of training, half a minute in all
"""

from ml_collections import ConfigDict

from train.configs import defaults


def get_config() -> ConfigDict:
    """The configuration."""
    config = defaults.get_config()
    config.epochs = 40
    config.batch_size = 32
    config.model.name = "lenet5"
    config.model.fields = {"activation": "relu", "pooling": "max"}
    config.data.name = "digits"
    config.data.image_size = 32
    config.augment.translate = 2
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 1e-2
    config.schedule.warmup_epochs = 1.0
    config.loss.label_smoothing = 0.05
    return config
