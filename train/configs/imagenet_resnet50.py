"""ResNet-50 on ImageNet, 224×224, streamed through Grain.

He, Zhang, Ren, Sun (2016), https://arxiv.org/abs/1512.03385, section 3.4: momentum 0.9, coupled decay 1e-4, batches of
256, rate 0.1. The rate falls by ten after each third of 90 epochs, with five epochs of warm-up (Goyal et al., 2017,
https://arxiv.org/abs/1706.02677). tensorflow-datasets must have prepared the data (the official files need an account).

Deviation: images are scaled to 224×224, padded and cropped; the paper scales the shorter side to 256-480 and crops.

Command: python -m train --config=imagenet_resnet50 --config.data.data_dir=FOLDER
Expected: 77.15 % top-1 published with ten crops (table 3 of the paper); not measured here
Hardware and time: made for 8 accelerators; not measured here
"""

from ml_collections import ConfigDict

from train.configs import defaults


def get_config() -> ConfigDict:
    """The configuration."""
    config = defaults.get_config()
    config.epochs = 90
    config.batch_size = 256
    config.eval_batch_size = 256
    config.log_every = 100
    config.baseline = "none"  # a thousand support vector machines would take minutes
    config.model.name = "resnet50"
    config.model.dtype = "bfloat16"
    config.data.name = "imagenet2012"
    config.data.image_size = 224
    config.data.placement = "grain"
    config.data.workers = 8
    config.augment.crop_padding = 16
    config.augment.flip = True
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = 0.1
    config.optimizer.options = {"momentum": 0.9}
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay = "coupled"
    config.schedule.name = "step"
    config.schedule.warmup_epochs = 5.0
    config.schedule.options = {"factor": 0.1}
    return config
