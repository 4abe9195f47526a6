"""A perceptron of 16 hidden units learns twenty labels of each digit, and how sure a LeNet-5 is of them.

The teacher is any run on the ten digits at 16×16 pixels with the same seed, and so the same split: a teacher of another
seed has seen some of the test images. For example:
python -m train --config=pretrain_digits --config.data.options="{}" --workdir=runs/teacher_digits
The student alone: --config.distillation.alpha=0

Command: python -m train --config=distill_digits
Expected: 95.3 % test accuracy (seeds 0-4, standard error 0.5; the student alone 91.7 ± 0.6, the teacher 98.4 ± 0.2)
Hardware and time: one CPU core shared with other work, 3 s of training
"""

from ml_collections import ConfigDict

from train.configs import defaults


def get_config() -> ConfigDict:
    """The configuration."""
    config = defaults.get_config()
    config.task = "distillation"
    config.epochs = 100
    config.batch_size = 50
    config.model.name = "mlp"
    config.model.fields = {"hidden": (16,)}
    config.data.name = "digits"
    config.data.image_size = 16
    config.data.options = {"labels_per_class": 20}
    config.augment.translate = 1
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-2
    config.distillation.teacher = "runs/teacher_digits"
    config.checkpoint.every_epochs = 50.0
    config.evaluate_with = "last"
    return config
