"""Adversarial attacks: functions of `(apply_fn, params, images, labels)` that change images, never parameters.

`apply_fn(params, images)` gives the logits [batch, classes] as in inference and takes images in `bounds`: a
normalisation belongs inside of it. So `eps` and distances are in the units of the pixels.
"""

from dl_core.attacks.gradient import AttackResult, fgsm

__all__ = ["AttackResult", "fgsm"]
