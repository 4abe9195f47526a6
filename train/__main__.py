"""`python -m train`: trains and evaluates the model of a configuration, and leaves a report."""

import argparse
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Sequence

from ml_collections import ConfigDict

from dl_core.errors import UsageError
from train import configuration
from train.command_line import Parser, report_errors

CONFIG_FILE, SUMMARY_FILE = "config.json", "summary.json"
# what a run writes: what --overwrite removes, and what makes a folder one that is not taken silently
RUN_FILES = (
    CONFIG_FILE, SUMMARY_FILE, "dataset.json", "transfer.json", "metrics.jsonl", "report.html", "checkpoints",
    "weights", "tensorboard", "fold_*",
)  # fmt: skip
# fields that say where and how a run is computed, not what comes out of it: free to change on --resume
FREE_ON_RESUME = (
    "loop",
    "parallel.",
    "checkpoint.keep",
    "data.data_dir",
    "data.max_device_bytes",
    "data.placement",
    "data.workers",
)

USAGE = "python -m train --config=NAME|PATH [--config.FIELD=VALUE …] [--workdir=DIR] [--resume | --overwrite]"
EPILOG = """\
examples:
  python -m train --config=digits
  python -m train --config=digits --config.optimizer.learning_rate=3e-3 --config.epochs=10
  python -m train --config=my_config.py --workdir=runs/mine
  python -m train --workdir=runs/mine --resume
  python -m train --config=digits --help       every field of that config and its value

A config is a Python file that has get_config(); every field and its legal values: train/configs/defaults.py"""


def _parser() -> Parser:
    parser = Parser(prog="python -m train", usage=USAGE, description=__doc__, epilog=EPILOG, add_help=False)
    parser.add_argument("--config", metavar="NAME|PATH", help="a name that --list shows, or the path of a .py file")
    parser.add_argument("--config.FIELD", metavar="VALUE", help="another value for a field, e.g. --config.epochs=3")
    parser.add_argument("--workdir", metavar="DIR", help="where the run is kept; default runs/NAME-DATE-TIME")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --workdir")
    parser.add_argument("--overwrite", action="store_true", help="remove the run in --workdir first")
    parser.add_argument("--list", action="store_true", help="show every config with its expected result and time")
    parser.add_argument("-h", "--help", action="store_true", help="show this; with --config, also its fields")
    return parser


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes `--config.a.b=v` and `--config.a.b v` out of the arguments.

    Args:
      argv: arguments without the program's name.

    Returns:
      (the other arguments, the overrides as "a.b=v").

    Raises:
      UsageError: a field without a value.
    """
    others, overrides = [], []
    arguments = iter(argv)
    for argument in arguments:
        if not re.match(r"--?config\.", argument):
            others.append(argument)
            continue
        override = argument.lstrip("-").removeprefix("config.")
        if "=" not in override:
            value = next(arguments, None)
            if value is None or value.startswith("--"):
                raise UsageError(f"--config.{override} was given no value; write --config.{override}=VALUE")
            override = f"{override}={value}"
        overrides.append(override)
    return others, overrides


def format_list() -> str:
    """The text of `--list`."""
    blocks = []
    for summary in configuration.list_configs():
        rows = (("command", summary.command), ("expected", summary.expected), ("hardware", summary.hardware))
        lines = [f"{summary.name}: {summary.description}", *(f"    {name:9} {text}" for name, text in rows if text)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def run(argv: Sequence[str]) -> int:
    """The program without its handling of errors; arguments as in `main`."""
    argv, overrides = split_overrides(argv)
    parser = _parser()
    args = parser.parse(argv)
    if args.list:
        print(format_list())
        return 0
    if args.help:
        parser.print_help()
        if args.config:
            config = configuration.apply_overrides(configuration.load_config(args.config), overrides)
            print("\nfields:\n" + "\n".join(f"  --config.{p}={v}" for p, v in configuration.flatten(config)))
        return 0
    config, stored = _resolve(args, overrides)
    name = pathlib.Path(args.config).stem if args.config else ""
    workdir = pathlib.Path(args.workdir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    if config.parallel.process_id == 0 and not _prepare_workdir(workdir, config, stored, args):
        return 0
    _train(config, workdir, resume=args.resume)
    return 0


def _resolve(args: argparse.Namespace, overrides: list[str]) -> tuple[ConfigDict, ConfigDict | None]:
    """The config to run, checked, and the one stored in the workdir."""
    if args.resume and args.overwrite:
        raise UsageError("--resume goes on with a run and --overwrite removes it: give one of them")
    if args.resume and not args.workdir:
        raise UsageError("--resume needs --workdir=DIR, the run to go on with")
    stored = None
    if args.workdir and (path := pathlib.Path(args.workdir) / CONFIG_FILE).is_file():
        stored = configuration.from_json(path.read_text(encoding="utf-8"))
    if args.config is not None:
        config = configuration.load_config(args.config)
    elif args.resume and stored is not None:
        config = stored
    elif args.resume:
        raise UsageError(f"{args.workdir} holds no run (no {CONFIG_FILE}); give its --config to begin it")
    else:
        raise UsageError("which configuration? give --config=NAME, e.g. --config=digits; --list shows them all")
    config = configuration.apply_overrides(config, overrides)
    configuration.validate(config)
    if config.parallel.num_processes > 1 and not args.workdir:
        raise UsageError("several processes need --workdir=DIR, one folder that all of them see")
    return config, stored


def _prepare_workdir(
    workdir: pathlib.Path, config: ConfigDict, stored: ConfigDict | None, args: argparse.Namespace
) -> bool:
    """Sees to it that no run is lost or mixed with another. False: there is nothing left to do."""
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"{workdir} is a file; give another --workdir")
    present = [path for pattern in RUN_FILES for path in workdir.glob(pattern)]
    finished = (workdir / SUMMARY_FILE).exists()
    if args.overwrite:
        if present and stored is None:
            raise UsageError(f"{workdir} has files of another kind and no {CONFIG_FILE}: give another --workdir")
        for path in present:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    elif not args.resume:
        if present:
            raise UsageError(
                f"{workdir} holds {'a finished run' if finished else 'a run that was begun'}: "
                "go on with --resume, replace it with --overwrite, or give another --workdir"
            )
    else:
        different = configuration.differences(stored, config, ignore=FREE_ON_RESUME) if stored is not None else []
        if different:
            raise UsageError(
                f"--resume goes on with the run as it was configured, and {len(different)} field(s) differ: "
                f"{'; '.join(different)}. Give --workdir alone to go on, or another --workdir for a new run"
            )
        if finished:
            print(f"{workdir} is finished; its report is {workdir / 'report.html'}")
            return False
        folders = [*workdir.glob("checkpoints/*"), *workdir.glob("fold_*/checkpoints/*")]
        if not any(folder.name.isdigit() for folder in folders):  # one that was being written has a longer name
            print(f"{workdir} has no checkpoint: starting from the beginning")
    return True


def _train(config: ConfigDict, workdir: pathlib.Path, *, resume: bool) -> None:
    # late: these bring JAX, which --help and --list do without
    from train.folds import train_folds
    from train.loop import train_and_evaluate
    from train.report import summary_table

    first = config.parallel.process_id == 0
    train = train_folds if config.folds > 1 else train_and_evaluate
    try:
        # the first process alone has looked at the folder, and may be writing to it already
        summary = train(config, workdir, resume=resume or not first, stream=sys.stdout)
    except KeyboardInterrupt:
        print(f"\ngo on with: python -m train --workdir={workdir} --resume", file=sys.stderr)
        raise
    if first:
        print(f"\n{summary_table(summary)}\nreport: {workdir / 'report.html'}")


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
