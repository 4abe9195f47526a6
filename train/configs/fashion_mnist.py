"""LeNet-5 on Fashion-MNIST: 70,000 pictures of clothes in ten classes, 28×28 grey.

Xiao, Rasul, Vollgraf (2017), https://arxiv.org/abs/1708.07747. Prepare the data once from the four original files:
python -m train.prepare fashion_mnist --from=FOLDER

Command: python -m train --config=fashion_mnist
Expected: 90.6 ± 0.15 % test accuracy (5 seeds, mean ± standard error; tests/benchmarks/results/)
Hardware and time: one CPU core, 45 s of training
"""

from ml_collections import ConfigDict

from train.configs import defaults


def get_config() -> ConfigDict:
    """The configuration."""
    config = defaults.get_config()
    config.epochs = 5
    config.batch_size = 32
    config.eval_batch_size = 512
    config.model.name = "lenet5"
    config.model.fields = {"activation": "relu", "pooling": "max", "padding": "SAME"}
    config.data.name = "fashion_mnist"
    config.data.split = (0.92, 0.03, 0.05)  # the test split is given; about 1,900 of the other 60,000 images validate
    config.loss.label_smoothing = 0.05
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 1e-2
    config.schedule.warmup_epochs = 0.5
    return config
