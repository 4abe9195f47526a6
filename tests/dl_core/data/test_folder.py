"""A folder of images: classes from sub-folders, files checked, mistakes named."""

import numpy as np
import pytest
from PIL import Image

from dl_core.data import load
from dl_core.data.images import UnreadableImage
from dl_core.errors import UsageError


def paint(path, value=0, size=(8, 8), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size[1], size[0]), value).save(path)


@pytest.fixture
def animals(tmp_path):
    """Class = brightness: 20 files of each, of every common kind, some in deeper folders."""
    for value, name in ((0, "ant"), (100, "bee"), (200, "cat")):
        for i in range(20):
            kind = ("png", "bmp", "pgm", "JPG", "tiff")[i % 5]
            paint(tmp_path / name / ("deep" if i % 4 == 0 else ".") / f"{i}.{kind}", value)
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    return tmp_path


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_class_is_the_sub_folder(animals, in_memory):
    dataset = load(f"folder:{animals}", in_memory=in_memory)
    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.image_shape == (8, 8, 1)
    assert [len(part) for part in dataset.splits.values()] == [42, 9, 9]
    for part in dataset.splits.values():
        assert part.in_memory == in_memory
        images, labels = part.arrays()
        np.testing.assert_allclose(images[:, 0, 0, 0], 100 * labels, atol=1)  # JPEG may be off by one
    assert dataset.unreadable == ()


def test_links_to_files_and_folders_are_followed(animals, tmp_path_factory):
    links = tmp_path_factory.mktemp("links")
    (links / "insects").mkdir()
    (links / "insects" / "inner").symlink_to(animals / "ant")
    (links / "pets").symlink_to(animals / "cat")
    assert sum(map(len, load(f"folder:{links}").splits.values())) == 40


def test_splits_given_as_folders_are_kept(animals, tmp_path):
    root = tmp_path / "given"
    for split, n in (("train", 5), ("val", 2), ("test", 3)):
        for name in ("ant", "bee"):
            for i in range(n):
                paint(root / split / name / f"{i}.png", 7 * i)
    dataset = load(f"folder:{root}")
    assert dataset.class_names == ("ant", "bee")
    assert {key: len(part) for key, part in dataset.splits.items()} == {"train": 10, "validation": 4, "test": 6}


def test_without_a_validation_folder_training_gives_up_its_share(tmp_path):
    for split, n in (("train", 34), ("test", 3)):
        for name in ("ant", "bee"):
            for i in range(n):
                paint(tmp_path / split / name / f"{i}.png", i)
    dataset = load(f"folder:{tmp_path}")
    assert [len(part) for part in dataset.splits.values()] == [56, 12, 6]  # 68 × 0.15 / 0.85 = 12


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train"):
        for i in range(20):
            paint(tmp_path / name / f"{i}.png")
    assert load(f"folder:{tmp_path}").class_names == ("bus", "train")


def test_one_coloured_image_makes_all_rgb_unless_grey_is_asked(animals):
    paint(animals / "ant" / "red.png", (255, 0, 0), mode="RGB")
    assert load(f"folder:{animals}").image_shape == (8, 8, 3)
    assert load(f"folder:{animals}", channels=1).image_shape == (8, 8, 1)


@pytest.mark.parametrize("in_memory", [True, False])
def test_mixed_sizes_need_a_common_one(animals, in_memory):
    paint(animals / "ant" / "wide.png", size=(8, 20))
    with pytest.raises(UsageError, match=r"differ in size; give image_size"):
        load(f"folder:{animals}", in_memory=in_memory)
    dataset = load(f"folder:{animals}", image_size=(6, 10), in_memory=in_memory)
    assert dataset.image_shape == (6, 10, 1)
    assert dataset.train.batch(np.arange(3))["image"].shape == (3, 6, 10, 1)


def test_a_damaged_file_is_named_and_left_out_or_fatal(animals):
    whole = (animals / "ant" / "1.bmp").read_bytes()
    (animals / "ant" / "empty.png").write_bytes(b"")
    (animals / "bee" / "fake.png").write_text("hello")
    (animals / "cat" / "half.bmp").write_bytes(whole[: len(whole) // 2])  # the header is sound: only decoding tells
    dataset = load(f"folder:{animals}")
    assert {name.rsplit("/", 1)[-1] for name, _ in dataset.unreadable} == {"empty.png", "fake.png", "half.bmp"}
    assert sum(map(len, dataset.splits.values())) == 60
    with pytest.raises(UnreadableImage, match=r"(empty|fake|half)\.(png|bmp)"):
        load(f"folder:{animals}", on_error="raise")


def test_the_header_alone_finds_a_damaged_png_without_decoding(animals):
    whole = bytearray((animals / "ant" / "5.png").read_bytes())
    whole[-20] ^= 0xFF  # within the pixels: the checksum no longer fits
    (animals / "bee" / "flipped.png").write_bytes(whole)
    dataset = load(f"folder:{animals}", in_memory=False)
    assert [name.rsplit("/", 1)[-1] for name, _ in dataset.unreadable] == ["flipped.png"]


def test_mistakes_are_explained(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(UsageError, match="holds no sub-folders;"):
        load(f"folder:{tmp_path}")
    paint(tmp_path / "loose.png")
    with pytest.raises(UsageError, match="no sub-folders but loose images"):
        load(f"folder:{tmp_path}")
    (tmp_path / "ant").mkdir()
    with pytest.raises(UsageError, match="no readable image"):
        load(f"folder:{tmp_path}")
    for i in range(9):
        paint(tmp_path / "ant" / f"{i}.png")
    with pytest.raises(UsageError, match="at least two"):
        load(f"folder:{tmp_path}")
    paint(tmp_path / "bee" / "0.png")
    with pytest.raises(UsageError, match="too few examples: nothing is left"):
        load(f"folder:{tmp_path}", split=(0.98, 0.01, 0.01))


def test_a_test_class_that_training_lacks_is_refused(tmp_path):
    for path in ("train/ant/0.png", "train/bee/0.png", "test/wasp/0.png"):
        paint(tmp_path / path)
    with pytest.raises(UsageError, match=r"classes that training lacks: \['wasp'\]"):
        load(f"folder:{tmp_path}")
