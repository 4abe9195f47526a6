"""Masks: run lengths there and back, polygons on the pixel grid, overlaps as counted pixel by pixel."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.errors import UsageError
from dl_core.masks import (
    decode_rle,
    encode_rle,
    mask_area,
    mask_boxes,
    mask_iou_of_pairs,
    pairwise_mask_iou,
    polygons_to_mask,
    polygons_to_rle,
    run_lengths,
)


def random_masks(seed, n=2, height=7, width=11):
    rng = np.random.default_rng(seed)
    return rng.random((n, height, width)) < rng.choice([0, 0.1, 0.5, 0.9, 1], (n, 1, 1))


def test_runs_go_down_the_columns_and_begin_with_zeros():
    mask = np.array([[True, False, False], [True, True, False]])
    assert encode_rle(mask, compressed=False) == {"size": [2, 3], "counts": [0, 2, 1, 1, 2]}


def test_the_string_is_that_of_coco():
    mask = np.zeros((9, 40), bool)
    mask[2:7, 3:30] = True
    mask[4, 10:20] = False
    expected = (
        "m054000000000000MM030M030M030M030M030M030M030M030M030M033000000000000000000h2"  # written by pycocotools 2.0.11
    )
    assert encode_rle(mask)["counts"] == expected
    for counts in (expected, expected.encode()):
        np.testing.assert_array_equal(decode_rle({"size": [9, 40], "counts": counts}), mask)


def test_long_runs_take_several_characters():
    mask = np.zeros((1000, 1000), bool)
    mask[:, 499] = True
    rle = encode_rle(mask)
    assert run_lengths(rle).tolist() == [499_000, 1000, 500_000]
    np.testing.assert_array_equal(decode_rle(rle), mask)


@given(seed=st.integers(0, 2**31), compressed=st.booleans())
@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
def test_masks_survive_the_way_there_and_back(seed, compressed):
    masks = random_masks(seed)
    rles = [encode_rle(mask, compressed=compressed) for mask in masks]
    assert all((decode_rle(rle) == mask).all() for rle, mask in zip(rles, masks, strict=True))
    assert (mask_area(rles) == masks.sum(axis=(1, 2))).all()


def naive_iou(a, b, crowd):
    shared = (a[:, None] & b[None]).sum(axis=(2, 3))
    union = np.where(crowd[None], a.sum(axis=(1, 2))[:, None], (a[:, None] | b[None]).sum(axis=(2, 3)))
    return shared / np.maximum(union, 1)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
def test_overlaps_are_those_of_counted_pixels(seed):
    a, b = random_masks(seed), random_masks(seed + 1, 3)
    crowd = np.array([seed % 3 == 0, False, True])
    rles = [encode_rle(mask) for mask in a], [encode_rle(mask) for mask in b]
    np.testing.assert_array_equal(pairwise_mask_iou(*rles, crowd=crowd), naive_iou(a, b, crowd))


@pytest.mark.parametrize("jitted", [False, True])
def test_dense_masks_give_the_same_overlaps(jitted):
    a, b, crowd = random_masks(0), random_masks(1, 3), np.array([True, False, False])
    iou = lambda a, b, crowd: pairwise_mask_iou(a, b, crowd=crowd)
    ours = (jax.jit(iou) if jitted else iou)(a, b, crowd)
    np.testing.assert_allclose(ours, naive_iou(a, b, crowd), rtol=1e-6)  # float32


def test_pairs_may_be_of_images_of_different_size(monkeypatch):
    sizes = [(7, 11), (20, 3), (5, 5)]
    a, b = ([random_masks(seed + index, 1, *size)[0] for index, size in enumerate(sizes)] for seed in (2, 8))
    expected = [naive_iou(one[None], other[None], np.zeros(1, bool))[0, 0] for one, other in zip(a, b, strict=True)]
    index = np.arange(3)
    for at_once in (4_000_000, 1):  # all pairs at once, and pair by pair
        monkeypatch.setattr("dl_core.masks._QUERIES", at_once)
        rles = [encode_rle(mask) for mask in a], [encode_rle(mask) for mask in b]
        np.testing.assert_array_equal(mask_iou_of_pairs(*rles, index, index), expected)


def test_boxes_go_around_the_pixels():
    masks = np.zeros((3, 6, 8), bool)
    masks[0, 1:4, 2:7] = True
    masks[1, 5, 3] = masks[1, 0, 4] = True  # one run, over the foot of a column
    expected = [[2, 1, 7, 4], [3, 0, 5, 6], [0, 0, 0, 0]]
    np.testing.assert_array_equal(mask_boxes([encode_rle(mask) for mask in masks]), expected)


def test_a_polygon_on_the_pixel_grid_is_a_rectangle():
    expected = np.zeros((6, 9), bool)
    expected[1:4, 2:7] = True
    np.testing.assert_array_equal(polygons_to_mask([[2, 1, 7, 1, 7, 4, 2, 4]], 6, 9), expected)


def test_polygons_of_one_object_are_united():
    one, other = [0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 6, 2, 6, 6, 2, 6]
    united = polygons_to_mask([one, other], 8, 8)
    np.testing.assert_array_equal(united, polygons_to_mask([one], 8, 8) | polygons_to_mask([other], 8, 8))
    assert united.sum() == 16 + 16 - 4


def test_a_polygon_that_crosses_itself_is_filled_by_parity():
    ring = [0, 0, 6, 0, 6, 6, 0, 6, 0, 0, 2, 2, 2, 4, 4, 4, 4, 2, 2, 2]  # a square, and back around a hole in it
    assert polygons_to_mask([ring], 6, 6).sum() == 36 - 4


def test_what_lies_outside_of_the_image_is_cut_off():
    np.testing.assert_array_equal(polygons_to_mask([[-5, -5, 20, -5, 20, 20, -5, 20]], 4, 5), np.ones((4, 5), bool))
    assert not polygons_to_mask([[10, 10, 20, 10, 20, 20]], 4, 5).any()
    assert polygons_to_rle([[10, 10, 20, 10, 20, 20]], 4, 5, compressed=False)["counts"] == [20]


def test_a_disc_has_its_area():
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    disc = np.stack([50 + 30 * np.cos(angle), 50 + 30 * np.sin(angle)], axis=1).ravel().tolist()
    # COCO's rasteriser gives an outline half of the pixels that it cuts: well under 2 % of 2,820 pixels
    np.testing.assert_allclose(polygons_to_mask([disc], 100, 100).sum(), np.pi * 900, rtol=0.02)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: run_lengths([1, 2]), "dict with 'size' and 'counts', got list"),
        (lambda: run_lengths({"size": [2, 2], "counts": [1, 2]}), "fill 2 × 2 = 4 pixels, got runs that sum to 3"),
        (lambda: run_lengths({"size": [2, 2], "counts": [5, -1]}), "≥ 0"),
        (lambda: run_lengths({"size": [2, 2], "counts": "o"}), "no RLE string"),
        (lambda: run_lengths({"size": [2, 2], "counts": "\x20"}), "no RLE string"),
        (lambda: polygons_to_rle([], 4, 4), "at least one polygon"),
        (lambda: polygons_to_rle([[0, 0, 1, 1]], 4, 4), "three corners"),
        (lambda: polygons_to_rle([[0, 0, 1, 1, 2, 2, 3]], 4, 4), "three corners"),
        (lambda: polygons_to_rle([[0, 0, 1, 1, np.nan, 2]], 4, 4), "finite"),
        (lambda: pairwise_mask_iou(np.ones((1, 2, 2), bool), np.ones((1, 2, 3), bool)), "of one size"),
        (lambda: pairwise_mask_iou([encode_rle(np.ones((2, 2), bool))], [encode_rle(np.ones((2, 3), bool))]),
         r"one size \[height, width\], got \[2, 2\] and \[2, 3\]"),
    ],
)  # fmt: skip
def test_what_is_no_mask_is_refused(bad, message, annotations_off):
    with pytest.raises(UsageError, match=message):
        bad()
