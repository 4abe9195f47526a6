"""Fine-tuning on ten labels of each of the digits 5 to 9, from a LeNet-5 that has learnt the digits 0 to 4.

The last weights are evaluated, not the best of validation: whoever has fifty labels has no validation split to choose
by. From scratch: --config.transfer.weights= ; as fixed features under a linear head (DeCAF):
--config.transfer.freeze="('conv*','fc1','fc2')" --config.optimizer.learning_rate=3e-2

Command: python -m train --config=transfer_digits (after pretrain_digits, whose workdir config.transfer.weights names)
Expected: 94.6 % test accuracy (mean of seeds 0-4, standard error 1.1). From scratch 94.6 ± 1.0: digits are too easy to
  need it; on Fashion-MNIST fine-tuning gains 1.5 ± 0.4 points (tests/benchmarks/transfer.py)
Hardware and time: one CPU core shared with other work, 1 s of training
"""

from ml_collections import ConfigDict

from train.configs import pretrain_digits


def get_config() -> ConfigDict:
    """The configuration."""
    config = pretrain_digits.get_config()
    config.epochs = 200
    config.batch_size = 25
    config.data.options = {"classes": (5, 6, 7, 8, 9), "labels_per_class": 10}
    config.transfer.weights = "runs/pretrain_digits"
    config.optimizer.learning_rate = 3e-3
    config.checkpoint.every_epochs = 50.0
    config.evaluate_with = "last"
    return config
