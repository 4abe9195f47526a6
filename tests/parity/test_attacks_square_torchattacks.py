"""The square attack does as well as torchattacks' with as many queries, on the same network and images.

Both draw at random, and not the same: torchattacks gives all images of a batch the same square, leaves out the last row
and column, and asks again about a square that is there already. So shares are compared, over several seeds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.attacks.square import square

torch = pytest.importorskip("torch")
torchattacks = pytest.importorskip("torchattacks")

RNG = np.random.default_rng(0)
KERNEL = (RNG.normal(size=(3, 3, 3, 8)) / 5).astype(np.float32)
DENSE = (RNG.normal(size=(8 * 25, 5)) / 10).astype(np.float32)
IMAGES = RNG.uniform(0, 1, (64, 10, 10, 3)).astype(np.float32)
QUERIES, SEEDS = 100, 3


def apply_fn(params, images):
    kernel, dense = params
    maps = jax.lax.conv_general_dilated(images, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(maps).reshape(len(images), -1) @ dense


class TorchNet(torch.nn.Module):
    def forward(self, images):
        padded = torch.nn.functional.pad(images, (0, 1, 0, 1))  # "SAME" of an even size pads at the end
        maps = torch.nn.functional.conv2d(padded, torch.tensor(KERNEL.transpose(3, 2, 0, 1)), stride=2)
        return torch.relu(maps).permute(0, 2, 3, 1).reshape(len(images), -1) @ torch.tensor(DENSE)


@pytest.mark.parametrize(("norm", "eps", "targeted"), [("linf", 0.05, False), ("l2", 0.6, False), ("linf", 0.06, True)])
def test_success_and_queries_are_those_of_torchattacks(norm, eps, targeted):
    params = (jnp.asarray(KERNEL), jnp.asarray(DENSE))
    logits = np.asarray(apply_fn(params, jnp.asarray(IMAGES)))
    images = torch.tensor(IMAGES.transpose(0, 3, 1, 2).copy())
    np.testing.assert_allclose(TorchNet()(images).numpy(), logits, atol=1e-5)
    labels, third = logits.argmax(axis=1).astype(np.int32), np.argsort(logits, axis=1)[:, -3].astype(np.int32)
    target = jnp.asarray(third) if targeted else None

    ours, theirs = [], []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        reference = torchattacks.Square(TorchNet(), norm=norm.capitalize(), eps=eps, n_queries=QUERIES)
        reference.targeted = targeted
        reference.init_hyperparam(images)
        asked, found = reference.attack_single_run(images, torch.tensor(third if targeted else labels).long())
        predicted = TorchNet()(found).argmax(dim=1).numpy()
        fooled = predicted == third if targeted else predicted != labels
        theirs.append((fooled, asked.numpy()))

        result = square(
            apply_fn,
            params,
            jnp.asarray(IMAGES),
            jnp.asarray(labels),
            key=jax.random.key(seed),
            eps=eps,
            norm=norm,
            max_queries=QUERIES + 2,  # ours counts the question about the image as it is; theirs not the start
            target=target,
        )
        ours.append((np.asarray(result.success), np.asarray(result.queries) - 1))

    (ours_fooled, ours_asked), (theirs_fooled, theirs_asked) = (
        map(np.concatenate, zip(*r, strict=True)) for r in (ours, theirs)
    )
    print(norm, targeted, ours_fooled.mean(), theirs_fooled.mean(), np.median(ours_asked), np.median(theirs_asked))
    assert 0.2 < theirs_fooled.mean() < 0.98  # neither hopeless nor trivial
    # three standard errors of the difference of two shares of 192 runs, 0.05 each at most: 0.15
    assert abs(ours_fooled.mean() - theirs_fooled.mean()) < 0.15
    # a median lies between the quantiles 0.36 and 0.64 of the other sample: three errors of sqrt(0.25 (2 / 192)) = 0.05
    low, high = np.quantile(theirs_asked, [0.35, 0.65])
    assert low <= np.median(ours_asked) <= high
