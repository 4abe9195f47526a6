"""The data-bias report: planted differences are found with the planted figures, a balanced set is not flagged."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.data.examples import Examples
from dl_core.errors import UsageError
from dl_core.metrics.accumulator import gathering_metric
from dl_core.metrics.data_bias import data_bias
from dl_core.metrics.group_comparisons import group_differences, label_bias, representation
from dl_core.metrics.image_statistics import image_statistics


def balanced(n=600, seed=0):
    """Labels of three classes, two groups and images that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(0, 3, n), np.arange(n) % 2
    return labels, groups, rng.integers(60, 200, (n, 6, 6, 3)).astype(np.uint8)


def test_a_balanced_set_is_not_flagged():
    for seed in range(3):
        labels, groups, images = balanced(4000, seed)
        bias = data_bias(labels, groups, images, features=np.random.default_rng(seed).normal(size=(4000, 2)))
        assert bias.findings == ()
        assert "No difference between the groups stands out." in str(bias)


def test_findings_by_chance_are_as_rare_as_the_confidence_says():
    """Labels and measurements of 60 small sets: each kind may be flagged in one of twenty, 6 in all; 13 is 3 sigma."""
    flagged = 0
    for seed in range(60):
        labels, groups, _ = balanced(300, seed)
        features = np.random.default_rng(seed).normal(size=(300, 5))
        flagged += bool(data_bias(labels, groups, features=features).findings)
    assert flagged <= 13


def test_a_planted_lack_of_a_group_is_found():
    labels, _, _ = balanced(1000)
    groups = np.repeat([0, 1, 2], [600, 350, 50])
    bias = data_bias(labels, groups, population=[0.6, 0.3, 0.1], group_names=["A", "B", "C"])
    np.testing.assert_allclose(bias.representation.ratio, [1, 0.35 / 0.3, 0.5])
    np.testing.assert_allclose(bias.representation.total_variation, 0.05)
    expected = scipy.stats.chisquare([600, 350, 50], [600, 300, 100])
    np.testing.assert_allclose(bias.representation.p_value, expected.pvalue, rtol=1e-9)
    assert bias.findings == (
        "Representation: C is under-represented: 5.0 % of the examples (3.8 % to 6.5 %), 10.0 % of the population.",
    )


def test_a_group_that_is_missing_altogether_is_found():
    labels, groups, _ = balanced()
    bias = data_bias(labels, groups, group_names=["A", "B", "nobody"])
    assert bias.findings[0].startswith("Representation: A is over-represented: 50.0 %")
    assert any(finding.startswith("Representation: nobody is under-represented: 0.0 %") for finding in bias.findings)


def test_a_planted_difference_of_labels_is_found_with_its_figures():
    """Class 1 is 30 % of group 0 and 60 % of group 1, exactly."""
    labels = np.concatenate([np.repeat([0, 1], [350, 150]), np.repeat([0, 1], [200, 300])])
    groups = np.repeat([0, 1], 500)
    bias = data_bias(labels, groups, class_names=["no", "yes"], group_names=["women", "men"])
    (label,) = bias.labels
    np.testing.assert_allclose(label.rate, [[0.7, 0.3], [0.4, 0.6]])
    np.testing.assert_allclose(label.difference, 0.3)
    table = [[350, 150], [200, 300]]
    theirs = scipy.stats.contingency.association(table, method="cramer")
    np.testing.assert_allclose(label.cramers_v, theirs, rtol=1e-9)
    assert label.cramers_v_low < theirs < label.cramers_v_high
    joint = np.array(table) / 1000
    information = scipy.stats.entropy(joint.ravel(), np.outer(joint.sum(1), joint.sum(0)).ravel())
    np.testing.assert_allclose(label.mutual_information, information, rtol=1e-9)
    assert bias.findings == (
        "Label: label depends on the group (Cramér's V 0.30). Most of all, yes is 60.0 % of men and 30.0 % of women: "
        "30.0 (24.0 – 35.7) points apart.",
    )


def test_newcombes_interval_is_that_of_his_paper():
    """Newcombe (1998), table II, contrast (a): 56 of 70 and 48 of 80, method 10: 0.0524 to 0.3339."""
    label = label_bias(np.array([[14, 56], [32, 48]]))
    np.testing.assert_allclose([label.difference_low[1], label.difference_high[1]], [0.0524, 0.3339], atol=5e-5)


def test_intervals_of_cramers_v_cover_the_value_of_the_population():
    """400 draws of 500 examples of a table whose V is 0.2; a coverage of 95 % has a standard error of 1.1 %."""
    shares = np.array([0.3, 0.2, 0.2, 0.3])
    tables = np.random.default_rng(0).multinomial(500, shares, size=400).reshape(-1, 2, 2)
    labels = [label_bias(table) for table in tables]
    covered = np.mean([label.cramers_v_low <= 0.2 <= label.cramers_v_high for label in labels])
    assert 0.915 < covered < 0.985


def test_planted_differences_of_images_are_found():
    """Group 1 is darker by 20 grey levels; the rest of its statistics are those of group 0."""
    labels, groups, images = balanced()
    images[groups == 1] -= 20
    bias = data_bias(labels, groups, images)
    assert len(bias.findings) == 1
    assert bias.findings[0].startswith("Measurement: brightness is higher in group 0 than elsewhere: 0.5")
    means = bias.measurement.mean[:, bias.measurement.names.index("brightness")]
    np.testing.assert_allclose(means[0] - means[1], 20 / 255, atol=2e-3)  # standard error 0.0015


def test_missing_values_and_disagreeing_annotators_are_found():
    rng = np.random.default_rng(0)
    labels, groups, _ = balanced(1000)
    age = rng.normal(40, 10, 1000)
    age[(groups == 1) & (rng.random(1000) < 0.2)] = np.nan
    second = np.where((groups == 0) & (rng.random(1000) < 0.3), (labels + 1) % 3, labels)
    third = np.where(rng.random(1000) < 0.5, -1, labels)
    bias = data_bias(
        labels, groups, features=age, feature_names=["age"], annotations=np.stack([labels, second, third], axis=1)
    )
    assert [finding.split(":")[1].split(" in ")[0] for finding in bias.findings] == [
        " annotators' disagreement is higher",
        " age is missing",
    ]
    np.testing.assert_allclose(bias.measurement.missing[:, 0], [0, np.isnan(age[groups == 1]).mean()])
    # Two annotators differ with probability 0.3 in one pair; a third, who is right, makes it two pairs of three.
    changed = second != labels
    expected = np.where(changed, np.where(third < 0, 1, 2 / 3), 0)[groups == 0].mean()
    np.testing.assert_allclose(bias.measurement.mean[0, 1], expected)


def test_numbers_as_labels_and_several_labels_are_compared_each():
    rng = np.random.default_rng(0)
    groups = np.arange(400) % 2
    angle = rng.normal(0, 1, 400) + np.where(groups == 0, 0, 1)
    bias = data_bias(angle.astype(np.float32), groups, label_names=["angle"])
    np.testing.assert_allclose(bias.label_values.standardized, [[-1], [1]], atol=0.2)  # standard error 0.1
    assert bias.labels == ()
    assert bias.findings[0].startswith("Label: angle is lower in group 0")
    two = np.stack([groups, rng.integers(0, 2, 400)], axis=1)
    bias = data_bias(two, groups, label_names=["camera", "kind"])
    assert bias.labels[0].cramers_v == 1
    assert bias.labels[1].p_value > 0.05
    assert "### Label: kind" in str(bias)


def test_standardised_differences_are_those_of_the_t_test():
    rng = np.random.default_rng(0)
    values, groups = rng.gamma(2, size=(90, 1)) + 1e4, rng.integers(0, 3, 90)
    result = group_differences(values, np.eye(3)[groups])
    for k in range(3):
        inside, outside = values[groups == k, 0], values[groups != k, 0]
        test = scipy.stats.ttest_ind(inside, outside)
        np.testing.assert_allclose(result.p_value[k, 0], test.pvalue, rtol=1e-6)
        apart = np.sqrt(1 / len(inside) + 1 / len(outside))
        np.testing.assert_allclose(result.standardized[k, 0], test.statistic * apart, rtol=1e-6)
        np.testing.assert_allclose(result.deviation[k, 0], inside.std(ddof=1), rtol=1e-6)


def test_statistics_of_images_by_hand():
    half = np.zeros((1, 4, 4, 1), np.uint8)
    half[:, :, 2:] = 255
    flat = np.full((1, 4, 4, 3), 0.25, np.float32)
    brightness, contrast, sharpness = image_statistics(half)
    np.testing.assert_allclose([brightness[0], contrast[0], sharpness[0]], [0.5, 0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(np.array(image_statistics(flat))[:, 0], [0.25, 0, 0], atol=1e-6)
    np.testing.assert_allclose(jax.jit(image_statistics)(jnp.asarray(half)), image_statistics(half), rtol=1e-6)
    assert np.isnan(image_statistics(half[:, :2]).sharpness[0])


def test_images_of_many_sizes_have_a_resolution_and_unreadable_ones_are_missing():
    labels, groups, images = balanced(200)

    class Files:
        """As `LazyImages` of images as stored: group 1 is twice as large, and a fifth of it cannot be read."""

        def __len__(self):
            return len(images)

        def try_each(self):
            for i, image in enumerate(images):
                broken = groups[i] == 1 and i % 10 == 1
                yield (
                    i,
                    OSError("truncated") if broken else image.repeat(1 + groups[i], axis=0).repeat(1 + groups[i], 1),
                )

    bias = data_bias(labels, groups, Files())
    resolution = bias.measurement.names.index("resolution")
    np.testing.assert_allclose(bias.measurement.mean[:, resolution], [6, 12])
    np.testing.assert_allclose(bias.measurement.missing[:, resolution], [0, 0.2])
    assert any("resolution is lower in group 0 than elsewhere: 6 on average" in f for f in bias.findings)
    assert "Measurement: brightness is missing in 20.0 % of group 1." in bias.findings
    same = data_bias(labels, groups, list(images))
    np.testing.assert_allclose(same.measurement.mean, data_bias(labels, groups, images).measurement.mean, rtol=1e-5)


def test_any_set_of_the_project_will_do_and_rows_may_be_masked_or_gathered():
    labels, groups, images = balanced(90)
    examples = Examples(images, labels.astype(np.int32))
    whole = data_bias(examples.labels, groups, examples.images)
    assert whole.measurement.names == ("brightness", "contrast", "sharpness")
    padded = lambda array: np.concatenate([array, array[:5]])
    masked = data_bias(padded(labels), padded(groups), padded(images), where=np.arange(95) < 90)
    assert str(masked) == str(whole)
    metric = gathering_metric(functools.partial(data_bias, num_groups=2), 100, jnp.int32(0), jnp.int32(0))
    state = metric.update(metric.update(metric.init(), labels[:50], groups[:50]), labels[50:], groups[50:])
    assert str(metric.compute(state)) == str(data_bias(labels, groups))


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(st.sampled_from([1, 2, 7, 16]), st.integers(2, 4), st.integers(1, 3), st.integers(0, 2**20))
def test_any_table_has_figures_in_their_ranges(n, num_groups, num_classes, seed):
    rng = np.random.default_rng(seed)
    groups, labels = rng.integers(0, num_groups, n), rng.integers(0, num_classes, n)
    counts = np.bincount(groups * num_classes + labels, minlength=num_groups * num_classes).reshape(num_groups, -1)
    shares = representation(counts.sum(axis=1), rng.dirichlet(np.ones(num_groups)))
    assert 0 <= shares.total_variation <= 1
    assert 0 <= shares.p_value <= 1
    label = label_bias(counts)
    several = (counts.any(axis=0).sum() > 1) and (counts.any(axis=1).sum() > 1)
    assert several == (not np.isnan(label.cramers_v))
    if several:
        assert 0 <= label.cramers_v_low <= label.cramers_v_high <= 1
        assert 0 <= label.cramers_v <= 1
    assert 0 <= label.mutual_information <= np.log(max(num_classes, 2)) + 1e-12
    gap = label.difference[~np.isnan(label.difference)]
    assert ((gap >= 0) & (gap <= 1)).all()
    values = rng.normal(size=(n, 2))
    values[rng.random((n, 2)) < 0.3] = np.nan
    values[:, 1] = np.round(values[:, 1])
    result = group_differences(values, np.eye(num_groups)[groups])
    assert ((result.p_value >= 0) & (result.p_value <= 1)).all()
    assert ((result.missing_p_value >= 0) & (result.missing_p_value <= 1)).all()


def faulty(**changes):
    def change(rng, n):
        given = {"labels": rng.integers(0, 3, n), "groups": rng.integers(0, 2, n), "images": None}
        return {**given, **{name: make(rng, n) for name, make in changes.items()}}

    return change


FAULTS = {
    "labels": faulty(labels=lambda rng, n: rng.integers(0, 3, n + 1)),
    "labels ": faulty(labels=lambda rng, n: rng.integers(0, 3, n) - 9),
    "labels  ": faulty(labels=lambda rng, n: rng.random(n) * np.nan),
    "labels   ": faulty(labels=lambda rng, n: rng.random((n, 1, 1))),
    "labels    ": faulty(labels=lambda rng, n: np.zeros(0, int), groups=lambda rng, n: np.zeros(0, int)),
    "groups": faulty(groups=lambda rng, n: rng.integers(0, 2, n) - 9),
    "groups ": faulty(groups=lambda rng, n: rng.random(n)),
    "groups  ": faulty(groups=lambda rng, n: np.full(n, 2), num_groups=lambda rng, n: 2),
    "num_groups": faulty(groups=lambda rng, n: np.zeros(n, int), num_groups=lambda rng, n: 1),
    "images": faulty(images=lambda rng, n: rng.random((n + 1, 4, 4, 1))),
    "images ": faulty(images=lambda rng, n: rng.random((n, 4, 4))),
    "image": faulty(images=lambda rng, n: list(rng.random((n, 4, 4)))),
    "features": faulty(features=lambda rng, n: rng.random(n) + np.inf),
    "features ": faulty(features=lambda rng, n: rng.random((n + 1, 2))),
    "annotations": faulty(annotations=lambda rng, n: rng.random((n, 2))),
    "annotations ": faulty(annotations=lambda rng, n: rng.integers(0, 2, n)),
    "population": faulty(population=lambda rng, n: [0.5, 0.6]),
    "population ": faulty(population=lambda rng, n: [1.5, -0.5]),
    "population  ": faulty(population=lambda rng, n: [0.5, 0.5], num_groups=lambda rng, n: 3),
    "group_names": faulty(group_names=lambda rng, n: ["a", "b", "c"], num_groups=lambda rng, n: 2),
    "label_names": faulty(label_names=lambda rng, n: ["a", "b"]),
    "feature_names": faulty(features=lambda rng, n: rng.random(n), feature_names=lambda rng, n: ["a", "b"]),
    "confidence": faulty(confidence=lambda rng, n: 95.0),
    "where": faulty(where=lambda rng, n: np.zeros(n, bool)),
}


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(st.sampled_from([1, 2, 7, 16]), st.sampled_from(sorted(FAULTS)), st.integers(0, 2**20))
def test_malformed_sets_are_refused_by_the_name_of_the_argument(n, fault, seed):
    arguments = FAULTS[fault](np.random.default_rng(seed), n)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UsageError, match=fault.strip()):
            data_bias(**arguments)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
