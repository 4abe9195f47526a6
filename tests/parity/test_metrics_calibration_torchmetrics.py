"""Calibration error beside torchmetrics. Its bins are [low, high), ours (low, high]: no confidence here is an edge."""

import numpy as np
import pytest
from torchvision_on_cpu import import_zoo

from dl_core.metrics import calibration as ours

torch = pytest.importorskip("torch")
import_zoo()  # torchmetrics imports torchvision
theirs = pytest.importorskip("torchmetrics.functional.classification")


def forecasts(seed, n=400, classes=5):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(classes, 0.4), n).astype(np.float32)
    return rng.integers(0, classes, n), p


@pytest.mark.parametrize("num_bins", [5, 15])
@pytest.mark.parametrize("norm", ours.NORMS)
@pytest.mark.parametrize("seed", range(3))
def test_calibration_errors_agree(seed, norm, num_bins):
    labels, p = forecasts(seed)
    target, preds = torch.as_tensor(labels), torch.as_tensor(p)
    expected = theirs.multiclass_calibration_error(preds, target, p.shape[1], n_bins=num_bins, norm=norm)
    value = ours.calibration_error(labels, p, num_bins=num_bins, norm=norm)
    np.testing.assert_allclose(value, expected, rtol=1e-5)  # float32 sums in another order
    binary = theirs.binary_calibration_error(preds[:, 0].contiguous(), (target == 0).int(), n_bins=num_bins, norm=norm)
    value = ours.calibration_error((labels == 0).astype(int), p[:, 0], num_bins=num_bins, norm=norm)
    np.testing.assert_allclose(value, binary, rtol=1e-5)
