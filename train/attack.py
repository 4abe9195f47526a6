"""`python -m train.attack`: how much of a trained classifier's accuracy is left when somebody tries.

Attack only models that are yours, or whose owner agreed. The numbers are an upper bound of the robust accuracy: a
better attack may find more.
"""

import dataclasses
import fractions
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dl_core.errors import UsageError, unknown_name
from train.command_line import Parser, report_errors
from train.evaluate import WEIGHTS, load_examples, load_members

TASKS = ("classification", "distillation")
NORMS = ("linf", "l2")
DEFAULT_EPS = {"linf": "0.03,0.1,0.2", "l2": "0.5,1,2"}
CHECKED = 100  # images on which the checks for masked gradients run


@dataclasses.dataclass(frozen=True)
class Attacked:
    """What is attacked.

    apply_fn, variables: of the model; images in [0, 1].
    images: float32 [n, height, width, channels].
    labels: int32 [n].
    norm: "linf" or "l2".
    key: for what is drawn.
    """

    apply_fn: Callable[[Any, Any], Any]
    variables: Any
    images: Any
    labels: Any
    norm: str
    key: Any

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What every attack takes first."""
        return self.apply_fn, self.variables, self.images, self.labels


@dataclasses.dataclass(frozen=True)
class Found:
    """What one attack found at every radius.

    result: adversarial images, success and queries, with a first axis for the radii.
    score: the mean of ‖f(x) − f(x*)‖² / ‖x − x*‖² over the images that were moved, at each radius.
    seconds: of all radii together, compilation included.
    distance: of attacks that look for the nearest example, the distance of each image (infinite: none found); or None.
    """

    adversarial: np.ndarray
    success: np.ndarray
    queries: np.ndarray
    score: np.ndarray
    seconds: float
    distance: np.ndarray | None = None


def _noise(attacks: Any, a: Attacked, eps: Any) -> Any:
    """One random point of the ball: what is broken by it needs no attack. Trivial baseline of every table."""
    from dl_core.attacks.random_search import random_search

    return random_search(*a.arguments, key=a.key, eps=eps, norm=a.norm, num_random=1)


# each is given the module, so that --help does without JAX; eps is an array, so that another one compiles nothing
WITH_RADIUS: Mapping[str, Callable[[Any, Attacked, Any], Any]] = {
    "noise": _noise,
    "fgsm": lambda attacks, a, eps: attacks.fgsm(*a.arguments, eps=eps, norm=a.norm),
    "bim": lambda attacks, a, eps: attacks.bim(*a.arguments, eps=eps, norm=a.norm, steps=20),
    "pgd": lambda attacks, a, eps: attacks.pgd(*a.arguments, key=a.key, eps=eps, norm=a.norm, steps=20),
    "momentum_pgd": lambda attacks, a, eps: attacks.momentum_pgd(
        *a.arguments, key=a.key, eps=eps, norm=a.norm, steps=20
    ),
    "apgd": lambda attacks, a, eps: attacks.apgd(*a.arguments, key=a.key, eps=eps, norm=a.norm, steps=100),
    "square": lambda attacks, a, eps: attacks.square(*a.arguments, key=a.key, eps=eps, norm=a.norm, max_queries=1000),
    "ensemble": lambda attacks, a, eps: attacks.robust_accuracy(*a.arguments, key=a.key, eps=eps, norm=a.norm),
}
# these look for the nearest adversarial example, in the Euclidean norm unless they know the other
NEAREST: Mapping[str, Callable[[Any, Attacked], Any]] = {
    "deepfool": lambda attacks, a: attacks.deepfool(*a.arguments, norm=a.norm),
    "fab": lambda attacks, a: attacks.fab(*a.arguments, key=a.key, eps=None, norm=a.norm),
    "carlini_wagner": lambda attacks, a: attacks.carlini_wagner(*a.arguments, steps=200, binary_search_steps=5),
    "ddn": lambda attacks, a: attacks.ddn(*a.arguments),
    "boundary": lambda attacks, a: attacks.boundary(*a.arguments, key=a.key, max_queries=2000),
    "hop_skip_jump": lambda attacks, a: attacks.hop_skip_jump(*a.arguments, key=a.key, norm=a.norm, max_queries=2000),
}
EUCLIDEAN = ("carlini_wagner", "ddn", "boundary")
DEFAULT = ("noise", "fgsm", "pgd", "deepfool", "square", "ensemble")


def _parser() -> Parser:
    names = "\n  ".join([*WITH_RADIUS, *NEAREST])
    parser = Parser(prog="python -m train.attack", description=__doc__, epilog=f"attacks:\n  {names}")
    parser.add_argument("--workdir", metavar="DIR", required=True, help="of the run, as given to python -m train")
    parser.add_argument("--attacks", metavar="A,B,…", default=",".join(DEFAULT), help="default: %(default)s")
    parser.add_argument("--eps", metavar="E,E,…", help=f"radii in units of images in [0, 1]; default {DEFAULT_EPS}")
    parser.add_argument("--norm", choices=NORMS, default="linf", help="of the radii; default linf")
    parser.add_argument("--count", metavar="N", type=int, default=200, help="images of the test split; default 200")
    parser.add_argument("--skip-checks", action="store_true", help="do not look for masked gradients")
    parser.add_argument("--weights", choices=WEIGHTS, help="default: those that the run was evaluated with")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of prepared data sets")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of what is drawn; default 0")
    parser.add_argument("--output", metavar="FILE", help="the page; default attacks.html in the run's folder")
    return parser


def read_radii(given: str) -> tuple[float, ...]:
    """The radii of `--eps`, sorted.

    Raises:
      UsageError: no numbers, or negative ones.
    """
    try:
        radii = sorted({float(fractions.Fraction(part.strip())) for part in given.split(",")})
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"--eps must be numbers like 0.03,0.1 or 8/255, got {given!r}") from None
    if radii[0] < 0:
        raise UsageError(f"--eps must not be negative, got {given}")
    return tuple(radii)


def run_attacks(
    attacked: Attacked,
    names: Sequence[str],
    radii: Sequence[float],
    *,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Found]:
    """Runs attacks one after the other, at every radius.

    Args:
      attacked: n images.
      names: of WITH_RADIUS and NEAREST, in this order.
      radii: >= 0, rising.
      say: is given a line for each attack.

    Returns:
      name -> Found. An image that is broken at a smaller radius counts as broken at every larger one.

    Raises:
      UsageError: an unknown name, with the nearest; an attack that does not know the norm of the radii.
    """
    import jax
    import jax.numpy as jnp

    from dl_core import attacks

    every = (*WITH_RADIUS, *NEAREST)
    for name in names:
        if name not in every:
            raise unknown_name("attack", name, every)
        if name in EUCLIDEAN and attacked.norm != "l2":
            raise UsageError(f"{name} measures in the Euclidean norm; give --norm=l2, or leave it out of --attacks")
    found = {}
    for name in names:
        start = time.perf_counter()
        if name in NEAREST:
            nearest = jax.block_until_ready(NEAREST[name](attacks, attacked))
            curve = attacks.curve_from_distances(nearest, radii)
            results = [nearest._replace(success=broken) for broken in curve.broken]
        else:
            runs = [WITH_RADIUS[name](attacks, attacked, jnp.float32(radius)) for radius in radii]
            results = [_as_result(run, attacked.labels) for run in jax.block_until_ready(runs)]
        seconds = time.perf_counter() - start
        scores = [_mean_score(attacks, attacked, result.adversarial) for result in results]
        stack = lambda field, results=results: np.stack([np.asarray(getattr(result, field)) for result in results])
        found[name] = Found(
            adversarial=stack("adversarial"),
            success=np.maximum.accumulate(stack("success"), axis=0),
            queries=stack("queries"),
            score=np.asarray(scores),
            seconds=seconds,
            distance=np.where(nearest.success, nearest.distance, np.inf) if name in NEAREST else None,
        )
        shares = "  ".join(f"{100 * share:5.1f} %" for share in 1 - found[name].success.mean(axis=1))
        say(f"{name:16}  {shares}   {found[name].queries.mean():8.0f} queries an image  {seconds:7.1f} s")
    return found


def _as_result(run: Any, labels: Any) -> Any:
    """An ensemble's answer in the fields of an attack's."""
    if hasattr(run, "success"):
        return run
    from dl_core.attacks import AttackResult

    nothing = np.zeros(len(labels))
    return AttackResult(run.adversarial, ~np.asarray(run.robust), nothing, run.queries, nothing)


def _mean_score(attacks: Any, a: Attacked, adversarial: Any) -> float:
    scores = np.asarray(attacks.attack_score(a.apply_fn, a.variables, a.images, adversarial))
    moved = (np.asarray(adversarial) != np.asarray(a.images)).reshape(len(scores), -1).any(axis=1)
    return float(scores[moved].mean()) if moved.any() else 0.0


def run(argv: Sequence[str]) -> int:
    """The program without its handling of errors; arguments as in `main`."""
    args = _parser().parse(argv)
    if args.count < 1:
        raise UsageError(f"--count must be at least 1, got {args.count}")
    radii = read_radii(args.eps or DEFAULT_EPS[args.norm])
    members = load_members(args.workdir, weights=args.weights)
    # late: --help does without JAX
    import jax
    import jax.numpy as jnp

    from dl_core import attacks
    from train.predict import outputs
    from train.report import add_page, write_html
    from train.report.attack import attack_page

    trained, workdir = members[0], pathlib.Path(args.workdir)
    if len(members) > 1:
        print(f"note: the first of {len(members)} folds is attacked; --workdir={workdir}/fold_1 for the next")
        members, workdir = members[:1], workdir / "fold_0"
    if trained.config.task not in TASKS:
        raise UsageError(f"the run's task is {trained.config.task!r}; this program attacks classifiers")
    if args.data_dir:
        trained.config.data.data_dir = args.data_dir
    _, examples = load_examples(trained.config, "test")
    count = min(args.count, len(examples))
    rows = np.linspace(0, len(examples) - 1, count).astype(int)
    images, labels = examples.take(rows).arrays()
    clean = outputs(members, images)
    attacked = Attacked(
        apply_fn=trained.task.apply_fn,
        variables=trained.variables,
        images=jnp.asarray(images, jnp.float32) / 255,
        labels=jnp.asarray(labels, jnp.int32),
        norm=args.norm,
        key=jax.random.key(args.seed),
    )
    accuracy = float((clean.argmax(axis=1) == labels).mean())
    print(f"{count} images of the test split, {100 * accuracy:.1f} % correct; accuracy under attack within {args.norm}")
    print(f"{'':16}  " + "  ".join(f"{radius:7.3g}" for radius in radii), flush=True)
    names = [name.strip() for name in args.attacks.split(",")]
    found = run_attacks(attacked, names, radii, say=lambda line: print(line, flush=True))
    report = None
    if radii[-1] > 0 and not args.skip_checks:
        print("looking for masked gradients …", flush=True)
        middle = next(radius for radius in radii[len(radii) // 2 :] if radius > 0)
        report = attacks.check_gradient_masking(
            attacked.apply_fn, attacked.variables, attacked.images[:CHECKED], attacked.labels[:CHECKED],
            key=attacked.key, eps=middle, norm=args.norm,
        )  # fmt: skip
        for warning in report.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if not report.warnings:
            print(f"no sign of masked gradients at {middle:.3g}")
    page = attack_page(attacked, found, radii, report, class_names=tuple(trained.info.class_names))
    path = pathlib.Path(args.output) if args.output else workdir / "attacks.html"
    write_html(path, f"{trained.config.model.name} on {trained.config.data.name}, attacked", [page])
    add_page(workdir / "report.html", page)
    print(f"{path}, and a page in {workdir / 'report.html'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
      argv: arguments without the program's name; those of the command line by default.

    Returns:
      The exit status, see `train.command_line`.
    """
    return report_errors(run, argv)


if __name__ == "__main__":
    sys.exit(main())
