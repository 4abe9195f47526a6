"""The gradient of t-SNE's loss: neighbours attract each other, and all points repel each other.

    KL = Σ p_ij log(p_ij / q_ij),    q_ij = w_ij / Z,    w_ij = 1 / (1 + ‖y_i - y_j‖²),    Z = Σ_{i≠j} w_ij
    ∂KL / ∂y_i = 4 Σ_j p_ij w_ij (y_i - y_j) - 4 / Z Σ_j w_ij² (y_i - y_j)

(van der Maaten, Hinton 2008, equation 5). The second sum is a convolution of the points with a smooth kernel. On a grid
it costs a Fourier transform (Linderman et al. 2019, "Fast interpolation-based t-SNE", https://arxiv.org/abs/1712.09005).
Here kernel and points meet on one uniform grid with cubic splines, where the paper has a polynomial in each box: the
forces have no jumps and sum to 0, and one transform of the points is enough.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from dl_core.explain.tsne_affinities import Edges, Precisions, row_of
from dl_core.metrics.nearest import by_blocks

SPACING = 0.4  # of the grid, in units of the embedding, where the kernel has width 1: forces to 1 % of their size
NODES = (64, 128, 192, 256, 384, 512, 1024)  # a side; the least that holds all points is taken, at every step

_BORDER = 12  # nodes that stay empty, so that what the periodic transform wraps around does not reach the points

Matrix = Float[Array, "n n"] | Precisions
Affinities = Matrix | Edges
Points = Float[Array, "n c"]
Kernel = tuple[Complex[Array, "3 _ _"], Float[Array, "7 7"]]
Kernels = tuple[Kernel, ...]


def gradient(
    affinities: Affinities,
    points: Points,
    exaggeration: Float[Array, ""] | float = 1.0,
    *,
    kernels: Kernels | None = None,
) -> Points:
    """∂KL / ∂points, with p_ij `exaggeration` times as large; see the module for the formula.

    Args:
      affinities: the matrix; what makes its rows again (fixed memory); or the edges of nearest neighbours, with which
        repulsion is interpolated on a grid (two dimensions only).
      points: the embedding.
      exaggeration: >= 1.
      kernels: from `repulsion_kernels`, for edges; computed here if not given.

    Returns:
      Of the shape of the points.
    """
    if isinstance(affinities, Edges):
        repulsion, normaliser = interpolated_repulsion(points, kernels)
        return 4 * (exaggeration * _attraction_along(affinities, points) - repulsion / normaliser)
    attraction, repulsion, normaliser = _forces_of_rows(affinities, points)
    return 4 * (exaggeration * attraction - repulsion / normaliser)


def kl_divergence(affinities: Affinities, points: Points) -> Float[Array, ""]:
    """KL(P ‖ Q) in nats, with the exact Z, a block of rows at a time; see `gradient` for the arguments."""
    if isinstance(affinities, Edges):
        cross = _cross_entropy(affinities.probability, _gaps_along(affinities, points)[1])
        weights = by_blocks(lambda y: _weights(y, points).sum() - 1, points, batch_size=_block_size(len(points)))
        return cross.sum() + jnp.log(weights.sum())

    def of_row(point: Array, *row: Array) -> tuple[Array, Array]:
        weights = _weights(point, points)
        return _cross_entropy(_probabilities(affinities, *row), 1 / weights - 1), weights.sum() - 1

    cross, weights = by_blocks(of_row, points, *_rows(affinities), batch_size=_block_size(len(points)))
    return cross.sum() + jnp.log(weights.sum())


def repulsion_kernels() -> Kernels:
    """The transforms of the kernels on every grid of fixed spacing, computed once for all steps (no arguments)."""
    return tuple(_spectra(jnp.asarray(SPACING), nodes) for nodes in NODES[1:-1])


def interpolated_repulsion(
    points: Float[Array, "n 2"], kernels: Kernels | None = None
) -> tuple[Float[Array, "n 2"], Float[Array, ""]]:
    """Σ_j w_ij² (y_i - y_j) and Z, from a grid of at most 1024 nodes a side.

    The spacing is 0.4 up to an extent of 404 (a map of 10 000 points spans about 170), and grows with the extent
    beyond it: a point that flies out to 5000 smooths the forces over distances of 5

    Args:
      points: the embedding, in two dimensions.
      kernels: from `repulsion_kernels`; computed here if not given.

    Returns:
      Forces, and their normaliser.
    """
    kernels = repulsion_kernels() if kernels is None else kernels
    low = points.min(axis=0)
    extent = (points.max(axis=0) - low).max()

    def stretched(nodes: int) -> tuple[Array, Array]:  # a small map needs a finer grid, a huge one a coarser
        spacing = jnp.maximum(extent, 1e-6) / (nodes - _BORDER)
        return _on_grid(points, low, spacing, _spectra(spacing, nodes))

    fixed = [
        lambda kernel=kernel: _on_grid(points, low, jnp.asarray(SPACING, points.dtype), kernel) for kernel in kernels
    ]
    branches = [lambda: stretched(NODES[0]), *fixed, lambda: stretched(NODES[-1])]
    chosen = sum((extent > (nodes - _BORDER) * SPACING).astype(jnp.int32) for nodes in NODES[:-1])
    return jax.lax.switch(chosen, branches)


def exact_repulsion(points: Points) -> tuple[Points, Float[Array, ""]]:
    """What `interpolated_repulsion` approximates, over all pairs, in any number of dimensions."""
    _, repulsion, normaliser = _forces_of_rows(None, points)
    return repulsion, normaliser


def _forces_of_rows(affinities: Matrix | None, points: Array) -> tuple[Array, Array, Array]:
    """Attraction, repulsion and Z; each block of weights is used while it is in the cache."""
    with_ones = jnp.concatenate([points, jnp.ones_like(points[:, :1])], axis=1)

    def of_row(point: Array, *row: Array) -> tuple[Array, Array, Array]:
        weights = _weights(point, points)
        pulls = weights if affinities is None else weights * _probabilities(affinities, *row)
        return pulls @ with_ones, (weights * weights) @ with_ones, weights.sum() - 1

    rows = () if affinities is None else _rows(affinities)
    pulls, pushes, weights = by_blocks(of_row, points, *rows, batch_size=_block_size(len(points)))
    force = lambda sums: sums[:, -1:] * points - sums[:, :-1]
    return force(pulls), force(pushes), weights.sum()


def _rows(affinities: Matrix) -> tuple[Array, ...]:
    if isinstance(affinities, Precisions):
        own = (affinities.precision, affinities.nearest, affinities.normaliser)
        return (affinities.points, jnp.arange(len(affinities.points)), *own)
    return (affinities,)


def _probabilities(affinities: Matrix, *row: Array) -> Array:
    if isinstance(affinities, Precisions):
        point, place, *own = row
        return row_of(affinities, point, place, (own[0], own[1], own[2]))
    return row[0]


def _weights(point: Float[Array, " c"], points: Points) -> Float[Array, " n"]:
    return 1 / (1 + sum(((point[i] - points[:, i]) ** 2 for i in range(len(point))), jnp.zeros((), points.dtype)))


def _cross_entropy(p: Float[Array, "*rows m"], squared: Float[Array, "*rows m"]) -> Float[Array, "*rows"]:
    """Σ p (log p - log w) over the last axis."""
    return (jax.scipy.special.xlogy(p, p) + p * jnp.log1p(squared)).sum(axis=-1)


def _gaps_along(edges: Edges, points: Float[Array, "n c"]) -> tuple[list[Array], Array]:
    """y_i - y_j of every edge, by components: gathered faster than pairs are; and their squared length."""
    gaps = [column[edges.start][:, None] - column[edges.end] for column in points.T]
    return gaps, sum((gap**2 for gap in gaps), jnp.zeros((), points.dtype))


def _attraction_along(edges: Edges, points: Float[Array, "n c"]) -> Float[Array, "n c"]:
    gaps, squared = _gaps_along(edges, points)
    pulls = edges.probability / (1 + squared)
    forces = jnp.stack([(pulls * gap).sum(axis=1) for gap in gaps], axis=1)
    return jax.ops.segment_sum(forces, edges.start, len(points), indices_are_sorted=True)


def _on_grid(
    points: Float[Array, "n 2"], low: Float[Array, " 2"], spacing: Float[Array, ""], kernel: Kernel
) -> tuple[Float[Array, "n 2"], Float[Array, ""]]:
    spectra, around_zero = kernel
    side = spectra.shape[1]  # twice the grid, so that the transform, which is periodic, does not wrap points around
    place = (points - low[None]) / spacing + _BORDER / 2
    cell = jnp.floor(place)
    along = _cubic_spline(place - cell)  # [n, 2, 4]
    index = cell.astype(jnp.int32)[..., None] + jnp.arange(-1, 3)[None, None]
    index = (index[:, 0, :, None] * side + index[:, 1, None, :]).reshape(-1, 16)
    weights = (along[:, 0, :, None] * along[:, 1, None, :]).reshape(-1, 16)
    density = jnp.zeros(side * side, points.dtype).at[index].add(weights).reshape(side, side)
    fields = jnp.fft.irfft2(jnp.fft.rfft2(density)[None] * spectra, s=(side, side))
    potential, *forces = ((field.reshape(-1)[index] * weights).sum(axis=1) for field in fields)
    padded = jnp.pad(along, ((0, 0), (0, 0), (3, 3)))
    shifted = jnp.stack([(padded[..., m : m + 4] * along).sum(axis=-1) for m in range(7)], axis=-1)  # [n, 2, 7]
    of_itself = ((shifted[:, 0] @ around_zero) * shifted[:, 1]).sum(axis=1)  # the interpolated w_ii, nearly 1
    return jnp.stack(forces, axis=1), (potential - of_itself).sum()


def _spectra(spacing: Float[Array, ""], nodes: int) -> Kernel:
    """Transforms of w and of w² (y_i - y_j), each prepared to be interpolated by splines at both its ends.

    The second result is what w has become, at the nodes next to 0.
    """
    side = 2 * nodes
    steps = (jnp.arange(side) + nodes) % side - nodes
    gap = steps * spacing
    weight = 1 / (1 + gap[:, None] ** 2 + gap[None] ** 2)
    odd = jnp.where(steps == -nodes, 0, gap)[:, None] * weight**2
    spline = (2 + jnp.cos(jnp.pi * steps / nodes)) / 3  # transform of (1, 4, 1) / 6
    filters = (spline[:, None] * spline[None, : nodes + 1]) ** 2
    spectra = jnp.fft.rfft2(jnp.stack([weight, odd, odd.T])) / filters[None]
    near = jnp.arange(-3, 4) % side
    return spectra, jnp.fft.irfft2(spectra[0], s=(side, side))[near][:, near]


def _cubic_spline(t: Float[Array, "n 2"]) -> Float[Array, "n 2 4"]:
    """Weights of the nodes -1, 0, 1 and 2 for a place t in [0, 1) between 0 and 1."""
    s = 1 - t
    return jnp.stack([s**3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * s**2 + 3 * s**3, t**3], axis=-1) / 6


def _block_size(n: int) -> int:
    """Rows whose n weights stay in a core's cache; an accelerator takes more at once."""
    return max(1, (2**18 if jax.default_backend() == "cpu" else 2**26) // n)
