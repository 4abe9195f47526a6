"""Speed and pitch: a tone of f Hz becomes one of factor · f Hz, and nothing else is heard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config as annotations

from dl_core.augment import audio
from dl_core.augment.policies import per_image_keys
from dl_core.errors import UsageError

KEY = jax.random.key(0)
RATE, SAMPLES = 8000, 8192
FACTORS = np.array([1.25, 0.8, 1.0, 2 ** (1 / 12)], np.float32)
TONES = np.array([440.0, 700.0, 1000.0, 2500.0])
TIME = np.arange(SAMPLES) / RATE
change_speed = jax.jit(audio.change_speed, static_argnames="length")
change_pitch = jax.jit(audio.change_pitch, static_argnames=("frame", "hop"))


def tones(frequencies=TONES):
    return jnp.asarray(np.sin(2 * np.pi * frequencies[:, None] * TIME), jnp.float32)


def loudest(wave):
    """Frequency of the peak of the spectrum in Hz."""
    return np.abs(np.fft.rfft(wave * np.hanning(len(wave)))).argmax() * RATE / len(wave)


def tone_and_rest(wave, frequency):
    """Amplitude of one frequency (least squares), and the deviation of all that is left of the middle of the wave."""
    middle = slice(1500, -1500)
    angle = 2 * np.pi * frequency * TIME[middle]
    waves = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    parts = np.linalg.lstsq(waves, wave[middle], rcond=None)[0]
    return np.hypot(*parts), np.std(wave[middle] - waves @ parts)


def test_a_faster_tone_is_the_higher_tone_and_a_shorter_one():
    played = np.asarray(change_speed(tones(), FACTORS))
    for wave, frequency, factor in zip(played, TONES, FACTORS, strict=True):
        filled = min(int((SAMPLES - 1) / factor) + 1, SAMPLES)
        expected = np.sin(2 * np.pi * frequency * factor * TIME[:filled])
        # the cubic is within 1e-3 up to half the rate; a tone that begins abruptly rings at its ends
        np.testing.assert_allclose(wave[200 : filled - 200], expected[200:-200], atol=2e-3)
        assert (wave[filled:] == 0).all()
        assert abs(loudest(wave[:filled]) - frequency * factor) < RATE / filled


def test_a_longer_output_holds_all_of_a_slower_wave():
    slower = np.asarray(change_speed(tones(), np.full(4, 0.5, np.float32), length=2 * SAMPLES))
    assert slower.shape == (4, 2 * SAMPLES)
    np.testing.assert_allclose(slower[:, 0:-2:2], tones()[:, :-1], atol=1e-5)  # every other sample is an old one


def test_a_higher_pitch_is_the_higher_tone_of_the_same_length_and_loudness():
    shifted = np.asarray(change_pitch(tones(), FACTORS))
    assert shifted.shape == (4, SAMPLES)
    for wave, frequency, factor in zip(shifted, TONES, FACTORS, strict=True):
        assert abs(loudest(wave) - frequency * factor) <= RATE / SAMPLES
        amplitude, rest = tone_and_rest(wave, frequency * float(factor))
        assert abs(amplitude - 1) < 1e-3
        assert rest < 2e-3  # 54 dB below the tone


def test_both_tones_of_a_chord_are_moved():
    frequencies = np.array([300.0, 500.0, 620.0, 800.0])
    chord = tones(frequencies) + 0.5 * tones(1.5 * frequencies)
    shifted = np.asarray(change_pitch(chord, FACTORS))
    for wave, frequency, factor in zip(shifted, frequencies, FACTORS, strict=True):
        amplitudes = [tone_and_rest(wave, multiple * frequency * float(factor))[0] for multiple in (1.0, 1.5)]
        np.testing.assert_allclose(amplitudes, [1, 0.5], atol=0.01)


@pytest.mark.parametrize("change", [change_speed, change_pitch])
def test_a_factor_of_one_changes_nothing(change):
    noise = np.random.default_rng(0).normal(size=(4, SAMPLES)).astype(np.float32)
    noise[:, 2000:5000] = 0  # a silence, longer than a frame
    np.testing.assert_allclose(change(noise, np.ones(4, np.float32)), noise, atol=2e-5)  # Fourier transforms, float32


@pytest.mark.parametrize("change", [change_speed, change_pitch])
def test_what_would_exceed_half_the_rate_is_removed_not_folded_back(change):
    changed = np.asarray(change(tones(np.full(4, 3000.0)), np.full(4, 1.5, np.float32)))  # 4500 Hz, folded 3500
    assert np.abs(changed[:, 1500:4000]).max() < 1e-3


@pytest.mark.parametrize("random", [audio.random_speed, audio.random_pitch])
def test_the_result_depends_on_the_key_and_the_row_alone(random):
    compiled, waves = jax.jit(random), jnp.broadcast_to(tones()[:1, :4096], (4, 4096))
    whole, keys = np.asarray(compiled(KEY, waves)), per_image_keys(KEY, 4)
    np.testing.assert_allclose(compiled(keys[2:], waves[2:]), whole[2:], atol=1e-4)
    assert len({round(loudest(wave)) for wave in whole}) > 1
    mapped = jax.jit(jax.vmap(random))(jnp.stack([KEY]), waves[None])[0]
    np.testing.assert_allclose(mapped, whole, atol=1e-4)  # 4096 samples, places in float32


def test_gradients_reach_the_wave_and_the_factor():
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(1, 512)), jnp.float32)
    loss = lambda wave, factor: (weights * audio.change_pitch(wave, factor, frame=128)).sum()
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(tones()[:1, :512], jnp.array([1.1]))
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_nonsense_is_refused(data):
    waves, ones = jnp.zeros((2, 64)), np.ones(2, np.float32)
    wrong = data.draw(st.sampled_from([0.0, -1.0, np.nan, np.inf]) | st.floats(-1e3, 0, width=32))
    factors = np.array([1.0, wrong], np.float32)
    count = data.draw(st.sampled_from([0, 1, 3]))
    refused = [
        lambda: audio.change_speed(waves, jnp.asarray(factors)),
        lambda: audio.change_pitch(waves, jnp.asarray(factors)),
        lambda: audio.change_speed(waves, jnp.ones(count)),
        lambda: audio.change_pitch(waves[:, :0], jnp.asarray(ones)),
        lambda: audio.change_speed(waves, jnp.asarray(ones), length=-count),
        lambda: audio.change_pitch(waves, jnp.asarray(ones), frame=65),
        lambda: audio.change_pitch(waves, jnp.asarray(ones), frame=64, hop=data.draw(st.sampled_from([0, -1, 33]))),
        lambda: audio.random_speed(KEY, waves, factors=(1.1, 0.9)),
        lambda: audio.random_speed(KEY, waves, factors=(0.0, 1.0)),
        lambda: audio.random_pitch(KEY, waves, semitones=-1.0),
    ]
    annotations.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UsageError):
            data.draw(st.sampled_from(refused))()
    finally:
        annotations.update("jaxtyping_disable", False)
