"""Speed and pitch of sound: waves [batch, samples] in, waves of a fixed length out, a factor of its own for each.

Playing faster (`change_speed`) raises the pitch and shortens the sound, as a record that turns faster; `change_pitch`
raises the pitch and keeps the length. What would come to lie above half the sampling rate is removed first, so that it
does not come back as a lower tone.
"""

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Key

from dl_core.augment.policies import per_image_keys
from dl_core.errors import UsageError

OVERSAMPLING = 8  # a cubic through four of these finer samples is within 0.1 % up to half the sampling rate
MARGIN = 256  # zeros behind a wave, so that its end does not ring into its beginning
ROLL_OFF = 0.05  # share of the band below the limit over which the filter falls from 1 to 0


def change_speed(
    waves: Float[Array, "batch samples"], factors: Float[Array, " batch"], *, length: int | None = None
) -> Float[Array, "batch _"]:
    """Play faster or slower: output(t) = input(factor · t). A tone of f Hz becomes one of factor · f Hz.

    Args:
      waves: [batch, samples].
      factors: [batch], > 0; 2 is twice as fast and an octave higher.
      length: samples of the output; as many as the input has by default. The sound fills samples / factor of them:
        what is missing is zero, what is too much is cut off.

    Returns:
      Waves [batch, length].

    Raises:
      UsageError: factors that are not positive or not one for each wave, or a length below one.
    """
    _check(waves, factors)
    length = waves.shape[1] if length is None else length
    if length < 1:
        raise UsageError(f"length must be at least 1, got {length}")
    times = jnp.arange(length, dtype=waves.dtype)
    return jax.vmap(lambda wave, factor: _at_times(wave, times * factor, factor))(waves, factors)


def change_pitch(
    waves: Float[Array, "batch samples"], factors: Float[Array, " batch"], *, frame: int = 1024, hop: int | None = None
) -> Float[Array, "batch samples"]:
    """Raise or lower the pitch and keep the length: a tone of f Hz becomes one of factor · f Hz, everywhere in time.

    A phase vocoder: Flanagan, Golden (1966), "Phase vocoder". The sound is cut into overlapping frames that stay where
    they are, each is played at the new speed, and the phase of every frequency is continued from frame to frame by what
    it gains over one hop; neighbours are locked together, which keeps the amplitude of a tone (the idea of Laroche,
    Dolson 1999, "Improved phase vocoder time-scale modification of audio"). Phases of frequencies far apart lose their
    relation: a click becomes softer.

    Args:
      waves: [batch, samples].
      factors: [batch], > 0; 2 ** (semitones / 12).
      frame: samples of a frame, even: longer separates closer frequencies, shorter keeps time sharper.
      hop: samples from frame to frame; a quarter of a frame by default, at most half of one.

    Returns:
      Waves [batch, samples]; with a factor of 1 the input.

    Raises:
      UsageError: factors that are not positive or not one for each wave, or a frame and hop that do not overlap.
    """
    hop = frame // 4 if hop is None else hop
    if frame % 2 or not 1 <= hop <= frame // 2:
        raise UsageError(f"frame must be even and 1 <= hop <= frame / 2, got frame={frame} and hop={hop}")
    _check(waves, factors)
    samples = waves.shape[1]
    centres = hop * jnp.arange(-(-samples // hop) + 1, dtype=waves.dtype)
    offsets = jnp.arange(frame, dtype=waves.dtype) - frame // 2
    window = 0.5 - 0.5 * jnp.cos(2 * jnp.pi * jnp.arange(frame, dtype=waves.dtype) / frame)  # Hann's

    def shift(wave: Float[Array, " samples"], factor: Float[Array, ""]) -> Float[Array, " _"]:
        times = centres[:, None] + factor * offsets[None, :]
        now, one_hop_earlier = (
            jnp.fft.rfft(_at_times(wave, at, factor) * window[None, :]) for at in (times, times - factor * hop)
        )

        def continue_phase(last: Array, spectra: tuple[Array, Array]) -> tuple[Array, Array]:
            after, before = spectra
            # how far what was put out has turned from what came in: a frequency and its two neighbours turn together
            turned = jnp.pad(last * before.conj(), 1)
            turned = turned[:-2] + turned[1:-1] + turned[2:]
            # the phase of what is 80 dB below the loudest is rounding: what follows there starts with its own
            after = after * _unit(turned + 1e-8 * jax.lax.stop_gradient(jnp.abs(turned).max()))
            return after, after

        _, spectra = jax.lax.scan(continue_phase, one_hop_earlier[0], (now, one_hop_earlier))
        return jax.scipy.signal.istft(
            spectra.T / window.sum(), window="hann", nperseg=frame, noverlap=frame - hop, boundary=True
        )[1]

    return jax.vmap(shift)(waves, factors)[:, :samples].astype(waves.dtype)


def random_speed(
    key: Key[Array, ""] | Key[Array, " batch"],
    waves: Float[Array, "batch samples"],
    *,
    factors: tuple[float, float] = (0.9, 1.1),
    length: int | None = None,
) -> Float[Array, "batch _"]:
    """`change_speed` by a factor of its own for each wave.

    Args:
      key: one key, or one for each wave.
      waves: [batch, samples].
      factors: the slowest and the fastest, > 0; uniform between.
      length: see `change_speed`.

    Returns:
      Waves [batch, length].

    Raises:
      UsageError: factors that are not 0 < slowest <= fastest.
    """
    if not 0 < factors[0] <= factors[1]:
        raise UsageError(f"factors must be 0 < slowest <= fastest, got {factors}")
    return change_speed(waves, _uniform(key, len(waves), *factors), length=length)


def random_pitch(
    key: Key[Array, ""] | Key[Array, " batch"],
    waves: Float[Array, "batch samples"],
    *,
    semitones: float = 2.0,
    frame: int = 1024,
) -> Float[Array, "batch samples"]:
    """`change_pitch` by an interval of its own for each wave.

    Args:
      key: one key, or one for each wave.
      waves: [batch, samples].
      semitones: the interval is uniform in [-semitones, semitones]; twelve are an octave.
      frame: see `change_pitch`.

    Returns:
      Waves [batch, samples].

    Raises:
      UsageError: negative semitones.
    """
    if semitones < 0:
        raise UsageError(f"semitones must not be negative, got {semitones}")
    return change_pitch(waves, 2 ** (_uniform(key, len(waves), -semitones, semitones) / 12), frame=frame)


def _uniform(key: Key[Array, "*keys"], batch: int, low: float, high: float) -> Float[Array, " batch"]:
    draw = lambda one: jax.random.uniform(one, minval=low, maxval=high)
    return jax.vmap(draw)(per_image_keys(key, batch))


def _at_times(
    wave: Float[Array, " samples"], times: Float[Array, "*times"], factor: Float[Array, ""]
) -> Float[Array, "*times"]:
    """The wave between its samples, without what lies above half the sampling rate divided by the factor.

    Finer samples come from a longer Fourier transform, what lies between them from a cubic through four of them; zero
    before the first and after the last sample.
    """
    samples = len(wave)
    padded = MARGIN * (-(-samples // MARGIN) + 1)
    spectrum = jnp.fft.rfft(wave, padded)
    frequencies = jnp.fft.rfftfreq(padded, dtype=wave.dtype)  # cycles a sample, up to 1/2
    limit = 0.5 / factor
    kept = jnp.clip((limit - frequencies) / (ROLL_OFF * limit), 0, 1)
    spectrum = spectrum * jnp.where(factor > 1, kept, 1)
    spectrum = spectrum.at[-1].multiply(0.5)  # the highest frequency stands for itself and its mirror image
    fine = OVERSAMPLING * jnp.fft.irfft(spectrum, OVERSAMPLING * padded)

    before = jnp.floor(times * OVERSAMPLING)
    t, index = times * OVERSAMPLING - before, before.astype(jnp.int32)
    # Lagrange's polynomials for the points -1, 0, 1, 2; the wave is periodic after its margin of zeros
    weights = (
        -t * (t - 1) * (t - 2) / 6,
        (t + 1) * (t - 1) * (t - 2) / 2,
        -(t + 1) * t * (t - 2) / 2,
        (t + 1) * t * (t - 1) / 6,
    )
    places = [jnp.clip(index + shift, -1, OVERSAMPLING * samples) % len(fine) for shift in range(-1, 3)]
    values = sum(weight * fine[place] for weight, place in zip(weights, places, strict=True))
    return jnp.where((times >= 0) & (times <= samples - 1), values, 0)


def _unit(numbers: Array) -> Array:
    """Complex numbers of any shape with their length made 1; zero, and what is next to it, becomes 1."""
    sound = jnp.maximum(jnp.abs(numbers.real), jnp.abs(numbers.imag)) > 1e-18  # the square is still a float32
    numbers = jnp.where(sound, numbers, 1)
    return numbers * (1 / jnp.abs(numbers))


def _check(waves: Float[Array, "..."], factors: Float[Array, "..."]) -> None:
    if waves.ndim != 2 or 0 in waves.shape or factors.shape != waves.shape[:1]:
        shapes = f"{list(waves.shape)} and {list(factors.shape)}"
        raise UsageError(f"waves must be [batch, samples] and factors [batch], got shapes {shapes}")
    if not isinstance(factors, Tracer) and not bool((jnp.isfinite(factors) & (factors > 0)).all()):
        raise UsageError(f"factors must be positive and finite, got values from {factors.min()} to {factors.max()}")
