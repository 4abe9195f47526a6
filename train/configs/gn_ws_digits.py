"""A residual network that learns from one image at a time: GroupNorm and weight standardisation on the 8×8 digits.

Wu, He (2018), https://arxiv.org/abs/1803.08494, and Qiao et al. (2019), https://arxiv.org/abs/1903.10520. BatchNorm's
statistics of a batch of one are those of the image itself: the maps of the last stage have one pixel here, whose
normalised value is 0. `--config.model.name=resnet20_cifar` shows it: 11.5 and 13.8 % (two seeds).

Command: python -m train --config=gn_ws_digits
Expected: 96.7 ± 0.6 % test accuracy (5 seeds, mean ± standard error; the commonest class alone 10 %)
Hardware and time: one CPU core, 17 s of training
"""

from ml_collections import ConfigDict

from train.configs import defaults


def get_config() -> ConfigDict:
    """The configuration."""
    config = defaults.get_config()
    config.epochs = 4
    config.batch_size = 1
    config.model.name = "resnet20_cifar_gn_ws"
    config.model.fields = {"width": 8, "stage_sizes": (1, 1, 1, 1), "shortcut": "projection"}
    config.data.name = "digits"
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = 3e-3
    return config
