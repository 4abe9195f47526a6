"""ResNet-20 on CIFAR-10 by the recipe of the paper.

He, Zhang, Ren, Sun (2016), "Deep residual learning for image recognition", https://arxiv.org/abs/1512.03385, sec. 4.2:
momentum 0.9, coupled decay 1e-4 of all weights, batches of 128, rate 0.1, 64,000 steps, random crops of images padded
by 4, and flips. Prepare the data once from the original archive: python -m train.prepare cifar10 --from=FOLDER

Deviation: the rate falls by ten after each third of the steps, not at steps 32,000 and 48,000.

Command: python -m train --config=cifar10_resnet20
Expected: 91.25 % test accuracy published (table 6 of the paper); not measured here
Hardware and time: made for one GPU; not measured here
"""

from ml_collections import ConfigDict

from train.configs import defaults


def get_config() -> ConfigDict:
    """The configuration."""
    config = defaults.get_config()
    config.epochs = 200  # more than max_steps needs
    config.max_steps = 64_000
    config.batch_size = 128
    config.eval_batch_size = 512
    config.model.name = "resnet20_cifar"
    config.data.name = "cifar10"
    config.augment.crop_padding = 4
    config.augment.flip = True
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = 0.1
    config.optimizer.options = {"momentum": 0.9}
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay = "coupled"
    config.optimizer.decay_mask = "all"
    config.schedule.name = "step"
    config.schedule.options = {"factor": 0.1}
    config.evaluate_with = "last"
    return config
