"""Fashion-MNIST in the fewest seconds: a whitening stem, Muon, the whole data on the device, an epoch in one scan.

After Jordan (2024), "94% on CIFAR-10 in 3.29 seconds on a single GPU", https://arxiv.org/abs/2404.00498: the first
layer whitens patches and stays, images are mirrored every other time, predictions are averaged over ten views. Time it
with --config.loop=compiled and the compilation cache warm; the rule is seconds of training, as `summary.json` has
them, validation included.

Command: python -m train --config=fashion_mnist_speedrun
Expected: made to reach 94 % test accuracy; not measured, for want of a GPU
Hardware and time: one GPU; not measured
"""

from ml_collections import ConfigDict

from train.configs import defaults


def get_config() -> ConfigDict:
    """The configuration."""
    config = defaults.get_config()
    config.epochs = 10
    config.batch_size = 1000
    config.eval_batch_size = 2000
    config.checkpoint.every_epochs = 10.0
    config.evaluate_with = "last"
    config.model.name = "airbench94"
    config.model.dtype = "bfloat16"
    config.model.whiten = "whiten"
    config.transfer.freeze = ("whiten/kernel",)
    config.data.name = "fashion_mnist"
    config.data.split = (0.92, 0.03, 0.05)  # the test split is given; about 1,900 of the other 60,000 images validate
    config.augment.alternate_flip = True
    config.augment.crop_padding = 2
    config.augment.test_views = "ten_crop"
    config.loss.label_smoothing = 0.2
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 0.02
    config.optimizer.weight_decay = 0.01
    config.optimizer.options = {"adam_scale": 0.2}
    config.schedule.name = "linear"
    config.schedule.warmup_epochs = 1.0
    config.baseline = "none"
    return config
