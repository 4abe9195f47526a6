"""`python -m train.explain`: why a trained classifier says what it says, by every method side by side."""

import dataclasses
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
QUALITY = ("deletion", "insertion", "randomisation")
SHAPLEY_GRID = 6  # patches a side: 36 players


@dataclasses.dataclass(frozen=True)
class Explained:
    """What is explained.

    apply_fn, variables: of the model; images in [0, 1].
    images: float32 [n, height, width, channels].
    target: int32 [n], the class that is explained for each.
    background: float32 [m, height, width, channels], images of the training split.
    key: for the methods that draw.
    """

    apply_fn: Callable[[Any, Any], Any]
    variables: Any
    images: Any
    target: Any
    background: Any
    key: Any

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What every explanation takes first."""
        return self.apply_fn, self.variables, self.images, self.target


def _patches(explain: Any, e: Explained) -> Any:
    height, width = e.images.shape[1:3]
    return explain.patches((height, width), (-(-height // SHAPLEY_GRID), -(-width // SHAPLEY_GRID)))


def _window(e: Explained) -> dict[str, tuple[int, int]]:
    side, stride = max(2, e.images.shape[1] // 4), max(1, e.images.shape[1] // 16)
    return {"sliding_window_shapes": (side, side), "strides": (stride, stride)}


# every method for images, at settings for a quick look; each is given the module, so that --help does without JAX
METHODS: Mapping[str, Callable[[Any, Explained], Any]] = {
    "saliency": lambda explain, e: explain.saliency(*e.arguments),
    "gradient_x_input": lambda explain, e: explain.gradient_x_input(*e.arguments),
    "smooth_grad": lambda explain, e: explain.smooth_grad(*e.arguments, key=e.key),
    "integrated_gradients": lambda explain, e: explain.integrated_gradients(*e.arguments).attributions,
    "expected_gradients": lambda explain, e: (
        explain.expected_gradients(*e.arguments, key=e.key, baselines=e.background).attributions
    ),
    "blur_integrated_gradients": lambda explain, e: explain.blur_integrated_gradients(*e.arguments).attributions,
    "guided_backprop": lambda explain, e: explain.guided_backprop(*e.arguments),
    "deconvnet": lambda explain, e: explain.deconvnet(*e.arguments),
    "lrp_epsilon": lambda explain, e: explain.lrp(*e.arguments, rules="epsilon"),
    "lrp_epsilon_plus_flat": lambda explain, e: explain.lrp(*e.arguments, rules="epsilon_plus_flat"),
    "grad_cam": lambda explain, e: explain.grad_cam(*e.arguments),
    "grad_cam_plus_plus": lambda explain, e: explain.grad_cam_plus_plus(*e.arguments),
    "layer_cam": lambda explain, e: explain.layer_cam(*e.arguments),
    "score_cam": lambda explain, e: explain.score_cam(*e.arguments),
    "guided_grad_cam": lambda explain, e: explain.guided_grad_cam(*e.arguments),
    "attention_rollout": lambda explain, e: explain.attention_rollout(e.apply_fn, e.variables, e.images),
    "attention_relevance": lambda explain, e: explain.attention_relevance(*e.arguments),
    "occlusion": lambda explain, e: explain.occlusion(*e.arguments, **_window(e)),
    "kernel_shap": lambda explain, e: (
        explain.kernel_shap(*e.arguments, key=e.key, feature_mask=_patches(explain, e)).attributions
    ),
    "shapley_sampling": lambda explain, e: (
        explain.shapley_sampling(*e.arguments, key=e.key, feature_mask=_patches(explain, e)).attributions
    ),
}


def _parser() -> Parser:
    parser = Parser(prog="python -m train.explain", description=__doc__, epilog="methods:\n  " + "\n  ".join(METHODS))
    parser.add_argument("--workdir", metavar="DIR", required=True, help="of the run, as given to python -m train")
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="files; default: some of the test split")
    parser.add_argument("--methods", metavar="A,B,…", help="default: every one that the model allows; see below")
    parser.add_argument("--target", metavar="CLASS", help="the class to explain; default: the predicted one")
    parser.add_argument("--count", metavar="N", type=int, default=6, help="test images, mistakes among them; default 6")
    parser.add_argument("--weights", choices=WEIGHTS, help="default: those that the run was evaluated with")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of prepared data sets")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the methods that draw; default 0")
    parser.add_argument("--output", metavar="FILE", help="the page; default explanations.html in the run's folder")
    return parser


def choose_examples(labels: np.ndarray, logits: np.ndarray, count: int) -> np.ndarray:
    """Some examples to look at: the most confident mistakes, a third of them, and right answers of different classes.

    Args:
      labels: int [n].
      logits: float [n, classes].
      count: how many; fewer where there are not so many.

    Returns:
      int [count], the right ones first.
    """
    predictions = logits.argmax(axis=1)
    confidence = logits.max(axis=1) - np.logaddexp.reduce(logits, axis=1)
    wrong = np.flatnonzero(predictions != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][: count // 3]
    right = np.flatnonzero(predictions == labels)
    turn = np.zeros(len(right), int)  # the first of each class, then the second of each …
    for label in np.unique(labels[right]):
        own = labels[right] == label
        turn[own] = np.arange(own.sum())
    right = right[np.lexsort((labels[right], turn))][: count - len(wrong)]
    return np.concatenate([right, wrong])


def explain_all(
    explained: Explained, names: Sequence[str] | None, *, say: Callable[[str], None] = lambda line: None
) -> tuple[dict[str, np.ndarray], list[tuple[str, float, float]], list[tuple[str, str]]]:
    """Runs methods one after the other, each twice: with and without its compilation.

    Args:
      explained: what to explain, n images.
      names: of METHODS, in this order; None for all of them.
      say: is given a line for each method.

    Returns:
      name -> attributions [n, …]; (name, seconds of the first call, seconds of the second); and (name, reason) of those
      that this model does not allow.

    Raises:
      UsageError: an unknown name, with the nearest.
    """
    import jax

    from dl_core import explain

    for name in names or ():
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    found, seconds, left_out = {}, [], []
    for name in names or METHODS:
        try:
            times = []
            for _ in range(2):
                start = time.perf_counter()
                attributions = jax.block_until_ready(METHODS[name](explain, explained))
                times.append(time.perf_counter() - start)
        except UsageError as error:
            left_out.append((name, str(error)))
            say(f"{name:26}  left out: {error}")
            continue
        found[name] = np.asarray(attributions, np.float32)
        seconds.append((name, times[0], times[1]))
        say(f"{name:26}  {times[0]:7.2f} s, of which {times[1]:.2f} s without compilation")
    return found, seconds, left_out


def assess(explained: Explained, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The quality of methods on these images, as rows of a table.

    Args:
      explained: n images.
      names: of METHODS.

    Returns:
      See `dl_core.explain.evaluate.comparison_rows`.
    """
    import jax.numpy as jnp

    from dl_core import explain

    def as_function(method: Callable[[Any, Explained], Any]) -> Callable[..., Any]:
        def attributions(apply_fn: Any, variables: Any, images: Any, target: Any) -> Any:
            found = method(
                explain,
                dataclasses.replace(explained, apply_fn=apply_fn, variables=variables, images=images, target=target),
            )
            spread = found[..., None] / images.shape[-1] if found.ndim == 3 else found  # a map counts for all channels
            return jnp.broadcast_to(spread, images.shape)

        return attributions

    chosen = {name: as_function(METHODS[name]) for name in names}
    comparison = explain.evaluate.compare_methods(
        *explained.arguments, chosen, key=explained.key, metrics=QUALITY,
        patch_size=max(1, min(explained.images.shape[1:3]) // 16), n_steps=20,
    )  # fmt: skip
    return explain.evaluate.comparison_rows(comparison)


def run(argv: Sequence[str]) -> int:
    """The program without its handling of errors; arguments as in `main`."""
    args = _parser().parse(argv)
    if args.count < 1:
        raise UsageError(f"--count must be at least 1, got {args.count}")
    members = load_members(args.workdir, weights=args.weights)
    # late: --help does without JAX
    import jax
    import jax.numpy as jnp

    from train.predict import outputs, read_images
    from train.report import add_page, write_html
    from train.report.explanation import explanation_page

    trained, workdir = members[0], pathlib.Path(args.workdir)
    if len(members) > 1:
        print(f"note: the first of {len(members)} folds is explained; --workdir={workdir}/fold_1 for the next")
        members, workdir = members[:1], workdir / "fold_0"
    if trained.config.task not in TASKS:
        raise UsageError(
            f"the run's task is {trained.config.task!r}; this program explains classes. For values, call "
            "dl_core.explain with a target function: target=lambda outputs: outputs[:, 0]"
        )
    names = tuple(trained.info.class_names)
    if args.data_dir:
        trained.config.data.data_dir = args.data_dir
    labels: np.ndarray | None = None
    if args.images:
        resize = trained.config.data.options.get("resize", "stretch")
        images, records = read_images(args.images, tuple(trained.info.image_shape), resize)
        for record in records:
            if "error" in record:
                print(f"error: cannot read {record['file']}: {record['error']}", file=sys.stderr)
        titles = [pathlib.Path(record["file"]).name for record in records if "error" not in record]
        if not titles:
            return 2
        background = images
    else:
        dataset, examples = load_examples(trained.config, "test")
        every, every_label = examples.arrays()
        chosen = choose_examples(every_label, outputs(members, every), args.count)
        images, labels, titles = every[chosen], every_label[chosen], [f"test image {index}" for index in chosen]
        background = dataset.train.take(np.linspace(0, len(dataset.train) - 1, 16).astype(int)).arrays()[0]
    logits = outputs(members, images)
    probabilities = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    target = logits.argmax(axis=1) if args.target is None else np.full(len(images), class_index(args.target, names))
    explained = Explained(
        apply_fn=trained.task.apply_fn,
        variables=trained.variables,
        images=jnp.asarray(images, jnp.float32) / 255,
        target=jnp.asarray(target, jnp.int32),
        background=jnp.asarray(background, jnp.float32) / 255,
        key=jax.random.key(args.seed),
    )
    wanted = None if args.methods is None else [name.strip() for name in args.methods.split(",")]
    found, seconds, left_out = explain_all(explained, wanted, say=lambda line: print(line, flush=True))
    if not found:
        raise UsageError(f"none of the methods suits this model: {'; '.join(reason for _, reason in left_out)}")
    print("testing them …", flush=True)
    page = explanation_page(
        explained, found, seconds, left_out, assess(explained, list(found)),
        titles=titles, labels=labels, probabilities=probabilities, class_names=names,
    )  # fmt: skip
    path = pathlib.Path(args.output) if args.output else workdir / "explanations.html"
    write_html(path, f"{trained.config.model.name} on {trained.config.data.name}, explained", [page])
    add_page(workdir / "report.html", page)
    print(f"{path}, and a page in {workdir / 'report.html'}")
    return 0


def class_index(given: str, names: Sequence[str]) -> int:
    """The number of a class given by its name or number.

    Raises:
      UsageError: no such class, with the nearest names.
    """
    if given in names:
        return list(names).index(given)
    if given.isdigit() and int(given) < len(names):
        return int(given)
    raise unknown_name("class", given, names)


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
