"""Small runs that several tests share: a convolutional net with BatchNorm and dropout on random images."""

import numpy as np

from dl_core.data import Dataset, Examples
from train.configs import defaults


def random_dataset(n: int = 96, *, size: int = 8, classes: int = 3, seed: int = 0) -> Dataset:
    """Images whose brightness tells the class, with noise: learnable, but not at once."""
    random = np.random.default_rng(seed)

    def examples(count: int) -> Examples:
        labels = np.arange(count, dtype=np.int32) % classes
        images = 60 * labels[:, None, None, None] + random.integers(0, 120, (count, size, size, 1))
        return Examples(images.astype(np.uint8), labels)

    return Dataset(
        name="random", class_names=tuple("abc"[:classes]), train=examples(n), validation=examples(24), test=examples(24)
    )


def small_config(**changes):
    """The default config with a small ResNet, momentum, augmentation and the changes given as {"a.b": value}."""
    config = defaults.get_config()
    config.model.name = "resnet20_cifar"
    config.model.fields = {"stage_sizes": (1, 1), "width": 4}
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = 0.05
    config.augment.flip = True
    config.augment.crop_padding = 1
    config.batch_size = 32
    config.epochs = 2
    for path, value in changes.items():
        *groups, name = path.split(".")
        group = config
        for part in groups:
            group = group[part]
        group[name] = value
    return config
