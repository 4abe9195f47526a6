"""A residual network without any normalisation on the handwritten digits that scikit-learn brings along.

NF-ResNet-20 of Brock, De, Smith (2021), https://arxiv.org/abs/2101.08692, with half the channels, and adaptive gradient
clipping (https://arxiv.org/abs/2102.06171). Images of 8×8 pixels are enlarged to 16×16. The gains of the branches start
at 1: clipping allows a gain of 0 only steps of 0.001 of the clip, so SkipInit would open them slowly.

Command: python -m train --config=nf_resnet_digits
Expected: 96.9 ± 0.4 % test accuracy (5 seeds, mean ± standard error; the commonest class alone 10 %)
Hardware and time: one CPU core, 16 s of training
"""

from ml_collections import ConfigDict

from train.configs import defaults


def get_config() -> ConfigDict:
    """The configuration."""
    config = defaults.get_config()
    config.epochs = 6
    config.batch_size = 32
    config.model.name = "nf_resnet20_cifar"
    config.model.fields = {"width": 8, "skip_gain": 1.0}
    config.data.name = "digits"
    config.data.image_size = 16
    config.augment.translate = 1
    config.optimizer.name = "nesterov"
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay = "coupled"
    config.optimizer.clip_adaptive = 0.05
    config.schedule.warmup_epochs = 1.0
    return config
