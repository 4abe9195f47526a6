"""LeNet-5 on Fashion-MNIST, hardened against changes of up to 0.1 in every pixel of [0, 1].

Madry's adversarial training (PGD with 7 steps). --config.hardening.recipe=fast takes a third of the time, free and
trades are the others; tests/benchmarks/hardening.py compares them. Prepare the data once:
python -m train.prepare fashion_mnist --from=FOLDER

Command: python -m train --config=robust_fashion_mnist
Expected: 81.8 % test accuracy, 72.6 % under PGD-20 (seed 0); tests/benchmarks/results/hardening_lenet_cpu.md
Hardware and time: two CPU cores shared with other work, 11 min of training
"""

from ml_collections import ConfigDict

from train.configs import fashion_mnist


def get_config() -> ConfigDict:
    """The configuration."""
    config = fashion_mnist.get_config()
    config.epochs = 10
    config.batch_size = 100
    config.loss.label_smoothing = 0.0
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "linear"  # up in 4 epochs and down in 6, as Wong et al. (2020)
    config.schedule.warmup_epochs = 4.0
    config.hardening.recipe = "madry"
    config.hardening.eps = 0.1
    return config
