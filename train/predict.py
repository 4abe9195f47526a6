"""`python -m train.predict`: class and probability, or value, of image files, by a trained model."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from dl_core.errors import UsageError
from train.command_line import Parser, report_errors
from train.evaluate import WEIGHTS, load_members

BATCH_SIZE = 64  # files decoded and classified at once


def _parser() -> Parser:
    parser = Parser(prog="python -m train.predict", description=__doc__)
    parser.add_argument("--workdir", metavar="DIR", required=True, help="of the run, as given to python -m train")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="files that Pillow reads: PNG, JPEG, …")
    parser.add_argument("--top", metavar="N", type=int, default=3, help="how many classes to show; default 3")
    parser.add_argument("--weights", choices=WEIGHTS, help="default: those that the run was evaluated with")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a file")
    return parser


def read_images(
    paths: Sequence[str], shape: tuple[int, int, int], resize: str
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Image files as a model takes them.

    Args:
      paths: of the files.
      shape: (height, width, channels) of the model's images.
      resize: "stretch" or "crop", as in training.

    Returns:
      uint8 [readable, height, width, channels]; and for every file {"file"} with "resized_from" [height, width] where
      the size was another, or "error" where it cannot be read.
    """
    from dl_core.data.images import UnreadableImage, decode_image, image_header

    images, records = [], []
    for path in paths:
        record: dict[str, Any] = {"file": path}
        try:
            size = image_header(path)[:2]
            images.append(decode_image(path, image_size=shape[:2], channels=shape[2], resize=resize))
            if size != tuple(shape[:2]):
                record["resized_from"] = list(size)
        except UnreadableImage as error:
            record["error"] = error.reason
        records.append(record)
    return np.stack(images) if images else np.zeros((0, *shape), np.uint8), records


def outputs(members: Sequence[Any], images: np.ndarray) -> np.ndarray:
    """What the members, combined as their task says, make of images.

    Args:
      members: `Trained` models.
      images: uint8 [n, height, width, channels].

    Returns:
      float32 [n, …]; of a classifier logits.
    """
    from dl_core.data import Examples
    from train.folds import ensemble_outputs

    labels = np.zeros(len(images), np.int32)  # what they are is the question
    return ensemble_outputs(list(members), Examples(images, labels), BATCH_SIZE)[1]


def run(argv: Sequence[str]) -> int:
    """The program without its handling of errors; arguments as in `main`."""
    args = _parser().parse(argv)
    if args.top < 1:
        raise UsageError(f"--top must be at least 1, got {args.top}")
    members = load_members(args.workdir, weights=args.weights)
    info, config = members[0].info, members[0].config
    images, records = read_images(args.images, tuple(info.image_shape), config.data.options.get("resize", "stretch"))
    rows = iter(outputs(members, images)) if len(images) else iter(())
    for record in records:
        if "error" in record:
            print(f"error: cannot read {record['file']}: {record['error']}", file=sys.stderr)
            continue
        entries, text = members[0].task.answer(tuple(info.class_names), next(rows), args.top)
        record.update(entries)
        if not args.json:
            note = "  (resized from {}×{})".format(*record["resized_from"]) if "resized_from" in record else ""
            print(f"{record['file']}  {text}{note}")
    if args.json:
        for record in records:
            print(json.dumps(record))
    return 0 if len(images) else 2


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
