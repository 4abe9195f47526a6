"""The pointing game and relevance inside of masks: by hand, by chance, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dl_core.errors import UsageError
from dl_core.explain.evaluate.masks import area_share
from dl_core.explain.evaluate.pointing_game import pointing_game
from dl_core.explain.evaluate.relevance_accuracy import relevance_mass_accuracy, relevance_rank_accuracy

SCORES = [pointing_game, relevance_mass_accuracy, relevance_rank_accuracy]
MASK = np.zeros((1, 6, 6), bool)
MASK[0, 1:3, 1:4] = True  # six of 36 pixels
axiom = settings(max_examples=30, deadline=None, derandomize=True, database=None)


def peak(row, column):
    return jnp.zeros((1, 6, 6)).at[0, row, column].set(1)


def test_the_maximum_hits_or_misses_the_object():
    assert pointing_game(peak(2, 3), MASK) == 1
    assert pointing_game(peak(2, 4), MASK) == 0
    negative = -5 * peak(2, 3) + peak(0, 0)
    assert pointing_game(negative, MASK) == 0


def test_channels_are_summed_before_the_maximum_is_taken():
    maps = jnp.stack([peak(0, 0), 0.6 * peak(1, 1), 0.6 * peak(1, 1)], axis=-1)
    assert pointing_game(maps, MASK) == 1


@pytest.mark.parametrize(
    ("place", "tolerance", "hit"),
    [((2, 4), 1.0, 1), ((2, 5), 1.0, 0), ((2, 5), 2.0, 1), ((4, 5), 2.0, 0), ((4, 5), 2.9, 1), ((5, 5), 99.0, 1)],
)
def test_a_near_miss_within_the_tolerance_is_a_hit(place, tolerance, hit):
    """The pixel [4, 5] is 2√2 away from the corner [2, 3] of the object."""
    assert pointing_game(peak(*place), MASK, tolerance=tolerance) == hit


def test_mass_and_rank_by_hand():
    maps = peak(1, 1) * 3 + peak(0, 0) * 1 - peak(5, 5) * 4
    np.testing.assert_allclose(relevance_mass_accuracy(maps, MASK), 3 / 4)
    np.testing.assert_allclose(relevance_mass_accuracy(maps, MASK, relevance="absolute"), 3 / 8)
    signed = peak(1, 1) * 3 - peak(5, 5)
    np.testing.assert_allclose(relevance_mass_accuracy(signed, MASK, relevance="signed"), 3 / 2)
    falling = jnp.arange(36.0, 0, -1).reshape(1, 6, 6)  # by rows: the first six pixels, none of the object
    assert relevance_rank_accuracy(falling, MASK) == 0
    np.testing.assert_allclose(relevance_rank_accuracy(falling.at[0, 1, 1:4].set(99), MASK), 3 / 6)
    assert np.isnan(relevance_mass_accuracy(jnp.zeros((1, 6, 6)), MASK))


@pytest.mark.parametrize("score", SCORES)
def test_a_map_that_says_nothing_scores_the_share_of_the_area(score):
    np.testing.assert_allclose(score(jnp.ones((1, 6, 6)), MASK), 1 / 6, rtol=1e-6)
    np.testing.assert_allclose(area_share(MASK), 1 / 6, rtol=1e-6)
    noise = jax.random.uniform(jax.random.key(0), (2000, 6, 6))
    masks = jnp.broadcast_to(MASK, noise.shape)
    # a hit or miss has a standard deviation of 0.37: of the mean of 2000, 0.008
    np.testing.assert_allclose(score(noise, masks).mean(), 1 / 6, atol=0.03)


def test_ties_at_the_last_place_count_by_their_share():
    """Four of the six largest are in the object; the last two places are shared by eight pixels, two of them inside."""
    maps = jnp.zeros((1, 6, 6)).at[0, 1, 1:4].set(2).at[0, 2, 1].set(2)
    maps = maps.at[0, 2, 2:4].set(1).at[0, 5].set(1)
    np.testing.assert_allclose(relevance_rank_accuracy(maps, MASK), (4 + 2 * 2 / 8) / 6, rtol=1e-6)


@axiom
@given(arrays(np.float32, (2, 6, 6), elements=st.floats(-3, 3, width=16)), st.sampled_from([0.5, 4]))
def test_no_score_depends_on_a_positive_scale(maps, scale):
    masks = np.broadcast_to(MASK, maps.shape)
    for score in SCORES:
        np.testing.assert_array_equal(score(maps, masks), score(maps * np.float32(scale), masks))


@axiom
@given(arrays(np.float32, (2, 6, 6), elements=st.floats(0, 3, width=16)))
def test_the_object_and_the_rest_share_the_mass(maps):
    masks = np.broadcast_to(MASK, maps.shape)
    inside, outside = relevance_mass_accuracy(maps, masks), relevance_mass_accuracy(maps, ~masks)
    known = maps.sum(axis=(1, 2)) > 0
    np.testing.assert_allclose((inside + outside)[known], 1, rtol=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_scores_work_under_jit_and_vmap(score):
    maps = jax.random.normal(jax.random.key(1), (3, 1, 6, 6, 2))
    mapped = jax.jit(jax.vmap(score, in_axes=(0, None)))(maps, jnp.asarray(MASK))
    np.testing.assert_allclose(mapped[1], score(maps[1], MASK), rtol=1e-5)
    few_bits = score(maps[1].astype(jnp.bfloat16), MASK)
    np.testing.assert_allclose(few_bits, mapped[1], atol=0.2)  # one of six places may change hands


@pytest.mark.usefixtures("annotations_off")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pointing_game(peak(0, 0), MASK & False), r"examples \[0\] are empty"),
        (lambda: relevance_mass_accuracy(peak(0, 0), MASK & False), "are empty"),
        (lambda: relevance_rank_accuracy(peak(0, 0), MASK.astype(int)), "masks must be booleans"),
        (lambda: pointing_game(peak(0, 0), MASK[..., None]), r"shape \[1, 6, 6\], got \[1, 6, 6, 1\]"),
        (lambda: pointing_game(peak(0, 0)[0], MASK), r"got \[6, 6\]"),
        (lambda: pointing_game(peak(0, 0), MASK, tolerance=-1), "from 0 up, got -1"),
        (lambda: relevance_mass_accuracy(peak(0, 0), MASK, relevance="abs"), "unknown relevance 'abs'"),
    ],
)
def test_nonsense_is_refused(call, words):
    with pytest.raises(UsageError, match=words):
        call()
