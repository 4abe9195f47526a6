"""Several linear heads on one trunk: any backbone of the registry, its last layer cut into named blocks.

Linear heads on the same "penultimate" features are the columns of one linear layer, so a backbone with as many outputs
as all heads together *is* the network with several heads. Nothing has to be wrapped: weights, feature maps,
explanations and transfer work as for any other model. Caruana (1997), "Multitask learning", Machine Learning 28, 41-75.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float

from dl_core.errors import UsageError
from models.registry import create


def create_multi_head(name: str, heads: Mapping[str, int], **fields: Any) -> nn.Module:
    """A backbone by name with an output for every class of every head.

    Args:
      name: one of `models.list_models()`.
      heads: name of a head -> its number of classes, in the order of the logits.
      **fields: of the backbone, as for `models.create`.

    Returns:
      A module whose logits `split_logits` takes apart.

    Raises:
      UsageError: no head, a head without classes, or what `models.create` refuses.
    """
    _check(heads)
    return create(name, num_classes=sum(heads.values()), **fields)


def split_logits(
    logits: Float[Array | np.ndarray, "*batch all_classes"], heads: Mapping[str, int]
) -> dict[str, Float[Array | np.ndarray, "*batch classes"]]:
    """The logits of each head.

    Args:
      logits: of all heads, one after the other.
      heads: name of a head -> its number of classes.

    Returns:
      name -> logits [*batch, classes of the head].

    Raises:
      UsageError: another number of logits than the heads have classes.
    """
    _check(heads)
    if logits.shape[-1] != sum(heads.values()):
        raise UsageError(f"{logits.shape[-1]} logits, and the heads have {dict(heads)}")
    ends = np.cumsum(list(heads.values()))
    return {name: logits[..., end - heads[name] : end] for name, end in zip(heads, ends.tolist(), strict=True)}


def _check(heads: Mapping[str, int]) -> None:
    if not heads or min(heads.values()) < 1:
        raise UsageError(f"heads must name at least one head, each with one class or more, got {dict(heads)}")
