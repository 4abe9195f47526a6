"""The question for every accumulator: does any partition of the data, padded and masked, give the whole?"""

import jax
import jax.numpy as jnp
import numpy as np


def assert_any_partition_gives_the_whole(metric, arrays, expected, *, batch=16, parts=3, seeds=2, rtol=1e-5, atol=0.0):
    """Feeds the rows in random order, in `parts` states that are merged in random order, in padded masked batches.

    metric: a Metric whose `update` takes the arrays and `where`; it is jitted.
    arrays: [n, ...] each.
    expected: what the function of the whole arrays gives, any pytree.
    """
    n, update = len(arrays[0]), jax.jit(metric.update)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        shares = np.split(rng.permutation(n), np.sort(rng.integers(0, n + 1, parts - 1)))
        states = []
        for rows in shares:
            state = metric.init()
            while len(rows):
                size = int(rng.integers(1, batch + 1))
                taken, rows = rows[:size], rows[size:]
                where = np.zeros(batch, bool)
                where[rng.permutation(batch)[: len(taken)]] = True
                state = update(
                    state, *(_padded(array[taken], where, rng) for array in arrays), where=jnp.asarray(where)
                )
            states.append(state)
        state = states[0]
        for other in states[1:]:
            state = metric.merge(state, other) if rng.random() < 0.5 else metric.merge(other, state)
        close = lambda ours, whole: np.testing.assert_allclose(ours, whole, rtol=rtol, atol=atol)
        jax.tree.map(close, metric.compute(state), expected)


def _padded(rows, where, rng):
    """The rows where the mask says, and rows that must not count elsewhere: copies of real ones in any order."""
    padded = np.asarray(rows)[rng.integers(0, len(rows), len(where))]
    padded[where] = rows
    return jnp.asarray(padded)
