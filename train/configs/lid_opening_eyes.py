"""LeNet-5 on procedural eyes: how far the lids are open, a value between 0.5 and 1.

Half of the eyes are drawn plain, half with the shading, blur and noise of a photograph; nothing is downloaded.

Command: python -m train --config=lid_opening_eyes
Expected: 0.0307 ± 0.0008 mean absolute error (5 seeds; always the same answer 0.126)
Hardware and time: one CPU core shared with other work, 17 s of training
"""

from ml_collections import ConfigDict

from train.configs import gaze_eyes


def get_config() -> ConfigDict:
    """The configuration."""
    config = gaze_eyes.get_config()
    config.data.options.target = "lid_opening"
    config.regression.head = "value"
    config.regression.loss = "smooth_l1"
    return config
