"""LeNet-5 on procedural eyes: in which direction, of 0 to 360 degrees, does the eye look.

Half of the eyes are drawn plain, half with the shading, blur and noise of a photograph; nothing is downloaded. The
output is a vector, its direction the angle and its length how sure the network is (von Mises distribution), so there is
no jump between 359 and 1 degree; other losses: tests/benchmarks/results/angle_regression_cpu.md

Command: python -m train --config=gaze_eyes
Expected: 2.58 ± 0.06 degrees mean test error (5 seeds; always the mean direction 90.2)
Hardware and time: one CPU core shared with other work, 17 s of training
"""

from ml_collections import ConfigDict

from train.configs import defaults


def get_config() -> ConfigDict:
    """The configuration."""
    config = defaults.get_config()
    config.task = "regression"
    config.epochs = 6
    config.batch_size = 64
    config.model.name = "lenet5"
    config.model.fields = {"activation": "relu", "pooling": "max"}
    config.data.name = "eyes"
    config.data.options = {"target": "gaze", "style": "both", "num_train": 8192}
    config.regression.head = "angle"
    config.regression.loss = "von_mises"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 1e-2
    config.schedule.warmup_epochs = 0.5
    return config
