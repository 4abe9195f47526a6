"""The players of the game that Shapley values divide: who they are, and what a coalition of them is worth.

A player is a set of input values that are present or absent together: a pixel, a patch, a superpixel. `feature_mask`
holds the player of every value, ids 0 … n - 1:

    [height, width] or [height, width, channels]          the same players for all examples
    [batch, height, width] or [batch, …, channels]        players of each example, as `superpixels` makes them

(and the like for inputs of other ranks; axes of size 1 are repeated). Where both would fit, the shared one is meant.
Without a mask every pixel is a player, with all of its channels, and of inputs [batch, features] every value. Every id
below n must occur somewhere in the mask. An example that lacks some of them has fewer players: those that it lacks
change nothing and get exactly zero.

Who is absent has the values of `baselines` instead of its own: a number, one example, or an example for each input.
A background set of m examples has one axis more, [m, 1, …] for all inputs or [m, batch, …]: the worth of a coalition
is then the mean of the m outputs, the present values fixed (interventional: the background does not depend on what is
present).

    v(S) = 1/m Σ_j f_t(x on S, b_j elsewhere)        φ of all players sum to v(all) - v(none)

Every value of a player gets the whole φ of the player, as in Captum: attributions are a picture of φ, and it is
`values` that add up. A gap between baseline and input makes a coalition an image that the model may never have seen;
what it answers there is part of every φ.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from dl_core.errors import UsageError
from dl_core.explain.pieces import Progress, variants_at_once
from dl_core.explain.target import ApplyFn, Target, check_target, explained_output, select_target
from dl_core.loops import scan
from dl_core.superpixels import slic

_VALUES_ON_CPU = 2**19  # of the rows at once: small convolutional nets run faster than in one block of all

FeatureMask = Int[Array | np.ndarray, "..."] | None
Baselines = Float[Array | np.ndarray, "..."] | float | int


class ShapleyValues(NamedTuple):
    """Shapley values, as a picture and as numbers.

    attributions: shaped like the inputs, every value with the φ of its player.
    values: φ of each player, in units of the explained output; zero for a player that an example lacks.
    standard_errors: of `values`, from the sampling alone; zero where all coalitions were evaluated.
    """

    attributions: Float[Array, "batch ..."]
    values: Float[Array, "batch players"]
    standard_errors: Float[Array, "batch players"]


class Game(NamedTuple):
    """All that a coalition's worth depends on, apart from the model. Axes of size 1 are shared.

    params: of the model.
    inputs: the examples.
    target: from `check_target`.
    players: the player of every value, of the inputs' rank.
    baselines: m times what absent values are replaced by.
    """

    params: Any
    inputs: Float[Array, "batch ..."]
    target: Any
    players: Int[Array, "one_or_batch ..."]
    baselines: Float[Array, "m one_or_batch ..."]


def patches(shape: tuple[int, ...], size: int | tuple[int, int]) -> Int[np.ndarray, "height width"]:
    """A grid of rectangles as a feature mask, numbered row by row.

    Args:
      shape: (height, width), or (height, width, channels).
      size: of a patch in pixels, one number or (height, width). The last ones of a row or column may be smaller.

    Returns:
      The id of the patch of every pixel.

    Raises:
      UsageError: a shape of other length, or a size below 1.
    """
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    if len(shape) not in (2, 3) or len(sizes) != 2 or min(sizes) < 1:
        raise UsageError(
            "patches need the shape (height, width[, channels]) of one image and a size of at least 1 pixel, got shape "
            f"{shape} and size {size}"
        )
    rows, columns = (np.arange(length) // size for length, size in zip(shape, sizes, strict=False))
    return (rows[:, None] * (columns[-1] + 1) + columns[None]).astype(np.int32)


def superpixels(
    images: Float[Array | np.ndarray, "batch height width channels"], n_segments: int
) -> Int[Array, "batch height width"]:
    """The segments of each image as a feature mask; `dl_core.superpixels.slic` has the options.

    Args:
      images: in [0, 1].
      n_segments: about how many are wanted of each image; there may be fewer.

    Returns:
      The id of the segment of every pixel, each example's 0 … (its number of segments - 1).

    Raises:
      UsageError: see `dl_core.superpixels.slic`.
    """
    return slic(images, n_segments)


def set_up(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array | np.ndarray, "batch ..."],
    target: Target,
    feature_mask: FeatureMask,
    baselines: Baselines,
    n_players: int | None,
) -> tuple[Game, int]:
    """Checks the arguments that all Shapley methods share, before anything compiles.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference. It need not be differentiable.
      params: pytree of everything that apply_fn needs.
      inputs: the examples.
      target: see `explained_output`.
      feature_mask: the player of every value, see above.
      baselines: what absent values are replaced by, see above.
      n_players: how many players there are, where a mask made inside of `jit` or `vmap` cannot tell; ids must be below
        it, and need not all occur.

    Returns:
      The game and its number of players.

    Raises:
      UsageError: see `check_target`; a mask that is not of integers, does not fit the inputs, has negative ids or
        leaves some out; baselines that do not fit; a traced mask without n_players.
    """
    target = check_target(apply_fn, params, inputs, target, differentiable=False)
    inputs = jnp.asarray(inputs)
    shape = inputs.shape
    if feature_mask is None:
        pixels = shape[1:-1] if inputs.ndim > 2 else shape[1:]
        feature_mask = np.arange(np.prod(pixels), dtype=np.int32).reshape(pixels)
    if not jnp.issubdtype(jnp.result_type(feature_mask), jnp.integer):
        raise UsageError(
            f"feature_mask must hold integer ids of players, got {jnp.result_type(feature_mask)}; a boolean mask "
            "becomes two players by astype(int)"
        )
    players = jnp.reshape(jnp.asarray(feature_mask, jnp.int32), _place_of_mask(jnp.shape(feature_mask), shape))
    return Game(params, inputs, target, players, _placed(baselines, inputs)), _count(feature_mask, n_players)


def blocks(game: Game, coalitions: int, internal_batch_size: int | None) -> Int[np.ndarray, "blocks at_once"]:
    """The numbers of all pairs of a coalition and a background, as many in a block as are evaluated at once.

    Args:
      game: what is evaluated.
      coalitions: how many.
      internal_batch_size: see `variants_at_once`. None bounds the values, on a CPU by what its caches hold.

    Returns:
      0, 1, … row by row: m · coalition + background. The last block may run beyond the end.

    Raises:
      UsageError: internal_batch_size below 1.
    """
    if internal_batch_size is None and jax.default_backend() == "cpu":
        internal_batch_size = max(1, _VALUES_ON_CPU // max(1, math.prod(game.inputs.shape[1:])))
    pairs = coalitions * len(game.baselines)
    at_once = variants_at_once(internal_batch_size, game.inputs, pairs)
    return np.arange(-(-pairs // at_once) * at_once, dtype=np.int32).reshape(-1, at_once)


def payoff(
    apply_fn: ApplyFn,
    game: Game,
    coalition_of: Callable[[Int[Array, ""]], Bool[Array, " players"]],
    pairs: Int[Array, " pairs"],
) -> Float[Array, "pairs batch"]:
    """The explained output where only the players of a coalition are present, for the pairs of one block.

    Args:
      apply_fn: (params, inputs) -> logits.
      game: what is evaluated.
      coalition_of: index -> who is present.
      pairs: of a coalition and a background, from `blocks`.

    Returns:
      For each pair one number for each example, in at least float32.
    """
    backgrounds = len(game.baselines)
    present = jax.vmap(coalition_of)(pairs // backgrounds)[:, game.players]
    absent = game.baselines[pairs % backgrounds] if backgrounds > 1 else game.baselines
    present, absent = jnp.moveaxis(present, 0, 1), jnp.moveaxis(absent, 0, 1)
    mixed = jnp.where(present, game.inputs[:, None], absent)  # [batch, pairs, …]: a sharded batch stays where it is
    rows = mixed.reshape(-1, *game.inputs.shape[1:])
    output = apply_fn(game.params, rows)
    if output.shape[:1] == rows.shape[:1]:  # faster than `vmap`, which moves axes between convolutions
        output = jax.vmap(lambda one: select_target(one, game.target), in_axes=1)(
            output.reshape(*mixed.shape[:2], *output.shape[1:])
        )
    else:
        explained = lambda inputs: explained_output(apply_fn, game.params, inputs, game.target)
        output = jax.vmap(explained, in_axes=1)(mixed)
    return output.astype(jnp.promote_types(game.inputs.dtype, jnp.float32))


def payoffs(
    apply_fn: ApplyFn,
    game: Game,
    coalition_of: Callable[[Int[Array, ""]], Bool[Array, " players"]],
    count: int,
    *,
    internal_batch_size: int | None,
    loop: str,
    progress: Progress | None,
) -> Float[Array, "coalitions batch"]:
    """What coalitions are worth: the mean of `payoff` over the background, in fixed memory.

    Args:
      apply_fn: (params, inputs) -> logits, as a `Partial`.
      game: what is evaluated.
      coalition_of: index -> coalition, as a `Partial`.
      count: how many coalitions.
      internal_batch_size: see `blocks`.
      loop: see `dl_core.loops`.
      progress: called with (blocks done, blocks in all); not inside `jit`.

    Returns:
      For each coalition one number for each example.
    """
    step = Partial(_keep_block, apply_fn, game, coalition_of)
    xs = blocks(game, count, internal_batch_size)
    _, worth = scan(step, jnp.zeros(()), xs, loop=loop, progress=progress)
    return _mean_over_background(worth, count, len(game.baselines))


def _keep_block(
    apply_fn: ApplyFn, game: Game, coalition_of: Partial, carry: Float[Array, ""], pairs: Int[Array, " pairs"]
) -> tuple[Float[Array, ""], Float[Array, "pairs batch"]]:
    return carry, payoff(apply_fn, game, coalition_of, pairs)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _mean_over_background(
    worth: Float[Array, "blocks at_once batch"], count: int, backgrounds: int
) -> Float[Array, "coalitions batch"]:
    rows = worth.reshape(-1, worth.shape[-1])[: count * backgrounds]
    return rows.reshape(count, backgrounds, -1).mean(axis=1)


@jax.jit
def divided(
    game: Game, values: Float[Array, "batch players"], standard_errors: Float[Array, "batch players"]
) -> ShapleyValues:
    """The result from the values of the players.

    Args:
      game: what was divided.
      values: φ of the players.
      standard_errors: of the values.

    Returns:
      The same with the picture, and with exact zeros for players that an example lacks.
    """
    batch, n_players = values.shape
    players = jnp.broadcast_to(game.players, (batch, *game.players.shape[1:]))
    present = jax.vmap(lambda ids: jnp.zeros(n_players, bool).at[ids.ravel()].set(True))(players)
    values, standard_errors = (jnp.where(present, numbers, 0) for numbers in (values, standard_errors))
    picture = jax.vmap(lambda row, ids: row[ids])(values, players).astype(game.inputs.dtype)
    return ShapleyValues(jnp.broadcast_to(picture, game.inputs.shape), values, standard_errors)


def _place_of_mask(mask: tuple[int, ...], inputs: tuple[int, ...]) -> tuple[int, ...]:
    """The mask's shape among the axes of the inputs: those that it does not have become 1."""
    batch, *example = inputs
    pixels = example[:-1]
    forms = {
        (*pixels,): (1, *mask, 1),
        (*example,): (1, *mask),
        (batch, *pixels): (*mask, 1),
        (batch, *example): mask,
    }
    for form, place in forms.items():
        fits = len(mask) == len(form) and all(given in (1, size) for given, size in zip(mask, form, strict=True))
        if fits and len(place) == len(inputs) and mask:
            return place
    allowed = [list(form) for form in forms if form and (len(example) > 1 or form[-1] == example[-1])]
    raise UsageError(
        f"feature_mask must be of one of the shapes {', '.join(map(str, allowed))} for inputs {list(inputs)}, got "
        f"{list(mask)}"
    )


def _placed(baselines: Any, inputs: Float[Array, "batch ..."]) -> Float[Array, "m one_or_batch ..."]:
    given = jnp.shape(baselines)
    missing = inputs.ndim + 1 - len(given)
    place = (1,) * missing + given
    fits = all(size in (1, full) for size, full in zip(place[1:], inputs.shape, strict=True)) if missing >= 0 else False
    if not fits or place[0] == 0:
        raise UsageError(
            f"baselines must be a number, one example {list(inputs.shape[1:])}, one for each input "
            f"{list(inputs.shape)}, or a background set of m examples {['m', 1, *inputs.shape[1:]]}, which is "
            f"background[:, None]; got shape {list(given)}"
        )
    return jnp.asarray(baselines, inputs.dtype).reshape(place)


def _count(feature_mask: Any, n_players: int | None) -> int:
    if isinstance(feature_mask, Tracer):
        if n_players is None:
            raise UsageError(
                "the number of players cannot be read from a feature_mask made inside of jit or vmap; give n_players"
            )
        return n_players
    ids = np.unique(np.asarray(feature_mask))
    if not ids.size or ids[0] < 0:
        raise UsageError(f"feature_mask must hold ids of players from 0 on, got {ids[0] if ids.size else 'none'}")
    if n_players is not None:
        if ids[-1] >= n_players:
            raise UsageError(f"feature_mask has the id {ids[-1]}, and n_players = {n_players} ends at {n_players - 1}")
        return n_players
    if ids[-1] + 1 != ids.size:
        lacking = np.setdiff1d(np.arange(min(ids[-1], ids.size + 5)), ids)
        raise UsageError(
            f"feature_mask has ids up to {ids[-1]} but not {', '.join(map(str, lacking[:5]))}; number the players 0 … "
            "n - 1 (numpy.unique(mask, return_inverse=True)), or say n_players where ids may be unused"
        )
    return int(ids.size)
