"""torchvision and timm beside a CPU build of torch.

PyPI's torchvision for Linux is built against CUDA. Beside a CPU build of torch its compiled operators do not load, and
the import stops where it wants to describe two of them, `nms` and `qnms`. No classifier uses them: it is enough to
declare their signatures.
"""

import sys
import warnings

import pytest

_libraries = []  # a declaration lasts as long as its Library object


def import_zoo():
    """torchvision.models and timm; skips the test module where one of them is not installed."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both warn about optional parts that are not there
        try:
            import torchvision
        except ImportError:
            pytest.skip("torchvision is not installed", allow_module_level=True)
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[module]
            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _libraries.append(library)
            import torchvision
        return torchvision.models, pytest.importorskip("timm", reason="timm is not installed")
