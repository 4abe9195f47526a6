"""`python -m train.evaluate`: the figures of a trained model on a split of its data, or on other data."""

import copy
import json
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dl_core.errors import UsageError
from train import configuration
from train.command_line import Parser, report_errors

SPLITS = ("test", "validation", "train", "all")
WEIGHTS = ("best", "last", "average")


def load_members(workdir: str | pathlib.Path, *, weights: str | None = None) -> list[Any]:
    """The trained model of a run, or the models of all folds of a cross-validation.

    Args:
      workdir: of a finished run.
      weights: "best", "last" or "average"; by default those that the run was evaluated with.

    Returns:
      `Trained` models with the same inputs and classes, to be averaged.

    Raises:
      UsageError: no finished run there, or none with these weights.
    """
    from train.trained import restore

    workdir = pathlib.Path(workdir)
    path = workdir / "config.json"
    if weights is None and path.is_file():
        weights = configuration.from_json(path.read_text(encoding="utf-8")).evaluate_with
    folds = sorted(workdir.glob("fold_*"), key=lambda folder: int(folder.name.removeprefix("fold_")))
    return [restore(folder, weights=weights or "best") for folder in folds or [workdir]]


def load_examples(config: ConfigDict, split: str, *, fold: int = 0) -> tuple[Any, Any]:
    """The data set of a config and one of its splits.

    Args:
      config: of a run.
      split: "train", "validation", "test", or "all" for the three together.
      fold: which fold is the validation split, in a cross-validation.

    Returns:
      (Dataset, Examples).
    """
    from dl_core.data.examples import concatenate
    from train import tasks

    dataset = tasks.load_data(config, fold=fold)
    if split == "all":
        return dataset, concatenate(concatenate(dataset.train, dataset.validation), dataset.test)
    return dataset, dataset.splits[split]


def match_classes(labels: np.ndarray, given: Sequence[str], trained: Sequence[str]) -> tuple[np.ndarray, str]:
    """Labels of other data in the order of the classes that a model was trained on.

    Args:
      labels: int32 [n], numbers in `given`.
      given: class names of the other data.
      trained: class names of the model.

    Returns:
      int32 [n], numbers in `trained`; and a note for the user, empty where the names are the same.

    Raises:
      UsageError: another number of classes.
    """
    given, trained = list(given), list(trained)
    if len(given) != len(trained):
        raise UsageError(
            f"the data have {len(given)} classes ({_some(given)}), and the model was trained on "
            f"{len(trained)} ({_some(trained)}); they must be the same"
        )
    if given == trained:
        return labels, ""
    if set(given) == set(trained):
        order = np.array([trained.index(name) for name in given], np.int32)
        return order[labels], "the classes come in another order; labels were matched by name"
    return labels, f"the classes are called {_some(given)} here and {_some(trained)} in training; taken in this order"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])}, …"


def _parser() -> Parser:
    parser = Parser(prog="python -m train.evaluate", description=__doc__)
    parser.add_argument("--workdir", metavar="DIR", required=True, help="of the run, as given to python -m train")
    parser.add_argument("--split", choices=SPLITS, help="default test; all of it for other --data")
    parser.add_argument("--data", metavar="NAME|PATH", help="another data set, e.g. folder:PATH, as an external test")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of prepared data sets")
    parser.add_argument("--weights", choices=WEIGHTS, help="default: those that the run was evaluated with")
    parser.add_argument("--output", metavar="FILE", help="write the figures as JSON too")
    return parser


def run(argv: Sequence[str]) -> int:
    """The program without its handling of errors; arguments as in `main`."""
    args = _parser().parse(argv)
    members = load_members(args.workdir, weights=args.weights)
    # late: --help does without JAX
    from train.folds import ensemble_outputs
    from train.report import summary_table

    trained = members[0]
    config = copy.deepcopy(trained.config)
    split = args.split or ("all" if args.data else "test")
    if args.data:
        config.data.name, config.data.options = args.data, {}
        config.data.label_noise, config.data.shuffle_labels, config.folds = 0.0, False, 1
    if args.data_dir:
        config.data.data_dir = args.data_dir
    place = re.fullmatch(r"fold_(\d+)", pathlib.Path(args.workdir).resolve().name)
    if len(members) > 1 and split in ("train", "validation") and not args.data:
        raise UsageError(f"each fold has its own {split} split; give the --workdir of one, e.g. {args.workdir}/fold_0")
    fold = int(place[1]) if place and config.folds > 1 else 0
    dataset, examples = load_examples(config, split, fold=fold)
    if tuple(dataset.image_shape) != tuple(trained.info.image_shape):
        shapes = ["×".join(map(str, shape)) for shape in (dataset.image_shape, trained.info.image_shape)]
        raise UsageError(f"the images of {config.data.name} are {shapes[0]} and the model takes {shapes[1]}")
    labels, outputs = ensemble_outputs(members, examples, config.eval_batch_size)
    labels, note = match_classes(labels, dataset.class_names, trained.info.class_names)
    figures = {name.removeprefix("test_"): value for name, value in trained.task.summarise(labels, outputs).items()}
    if note:
        print(f"note: {note}", file=sys.stderr)
    for name, reason in dataset.unreadable:
        print(f"note: left out {name}: {reason}", file=sys.stderr)
    part = "all" if split == "all" else f"{split} split"
    print(f"{part} of {config.data.name}, {len(labels):,} examples")
    # "test" is whichever split it is
    print(re.sub(r"^test (.+?)(?=  )", lambda found: found[1].ljust(len(found[0])), summary_table(figures)))
    if args.output:
        about = {"workdir": args.workdir, "data": config.data.name, "split": split, "examples": len(labels)}
        pathlib.Path(args.output).write_text(json.dumps({**about, **figures}, indent=2) + "\n", encoding="utf-8")
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
