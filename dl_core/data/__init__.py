"""Data: sets by name, splits, statistics and batches. Images are uint8 [h, w, c] until on the device."""

from dl_core.data.coco_annotations import CocoData, load_coco
from dl_core.data.datasets import list_datasets, load, register
from dl_core.data.examples import Dataset, Examples, LazyImages, concatenate
from dl_core.data.images import UnreadableImage, decode_image
from dl_core.data.parts import Parts
from dl_core.data.pipeline import batch_order, evaluation_batches, stream
from dl_core.data.splits import stratified_folds, stratified_split
from dl_core.data.statistics import channel_statistics, class_balance, describe

__all__ = [
    "CocoData",
    "Dataset",
    "Examples",
    "LazyImages",
    "Parts",
    "UnreadableImage",
    "batch_order",
    "channel_statistics",
    "class_balance",
    "concatenate",
    "decode_image",
    "describe",
    "evaluation_batches",
    "list_datasets",
    "load",
    "load_coco",
    "register",
    "stratified_folds",
    "stratified_split",
    "stream",
]
