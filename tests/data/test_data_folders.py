"""Folders that are data: files by class, lists of files, pairs, VOC and COCO."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_media import png, wav

from trimtab.core.errors import InputError
from trimtab.data import Column, load, media, read_rows

IMAGE, AUDIO = Column("image", (), kind="image"), Column("audio", (), kind="audio")
BOXES, MASK = Column("boxes", (), kind="boxes"), Column("mask", (), kind="mask")
TEXT, LABEL = Column("text", ()), Column("label", ("category",), kind="label")
DATA = Path(__file__).parents[3] / "shared" / "data"
shared = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data on this machine")


def sizes(splits):
    return [len(part) for part in (splits.train, splits.validation, splits.test)]


def pictures(folder, n=10, start=0):
    for i in range(start, start + n):
        png(folder / ("cat", "dog")[i % 2] / f"{i}.png", i)


class TestClasses:
    def test_in_folders_of_splits(self, tmp_path):
        pictures(tmp_path / "train", 20)
        pictures(tmp_path / "val", 4, 20)
        pictures(tmp_path / "test", 6, 24)
        splits = load(str(tmp_path), (IMAGE, LABEL))
        assert sizes(splits) == [20, 4, 6]
        assert splits.notes == ()
        assert Path(splits.test["image"][0]) == tmp_path / "test" / "cat" / "24.png"
        assert splits.test["label"][:] == ["cat"] * 3 + ["dog"] * 3

    def test_without_splits(self, tmp_path):
        pictures(tmp_path, 40)
        (tmp_path / "README.md").write_text("cats and dogs")
        (tmp_path / "SOURCE.txt").write_text("drawn")
        (tmp_path / ".hidden").mkdir()
        png(tmp_path / ".hidden" / "x.png")
        splits = load(str(tmp_path), (IMAGE, LABEL))
        assert sizes(splits) == [32, 4, 4]
        assert "in equal shares of each label" in splits.notes[0]

    def test_recordings(self, tmp_path):
        for i in range(20):
            wav(tmp_path / "train" / ("low", "high")[i % 2] / f"{i}.wav", pitch=200 + 10 * i)
        splits = load(str(tmp_path), (AUDIO, LABEL))
        assert sizes(splits) == [16, 2, 2]
        assert media.audio(splits.train["audio"][0], 8000).shape == (1600,)

    def test_texts(self, write):
        for i in range(20):
            folder = write(f"data/train/{'pos' if i % 2 else 'neg'}/{i}.txt", f"Film {i}\nwas\n")
        splits = load(str(folder.parents[2]), (TEXT, LABEL))
        assert sizes(splits) == [16, 2, 2]
        assert splits.train["text"][0].endswith("\nwas\n")

    def test_a_broken_file_is_named(self, tmp_path):
        pictures(tmp_path / "train")
        (tmp_path / "train" / "dog" / "3.png").write_bytes(b"no picture")
        with pytest.raises(InputError) as error:
            load(str(tmp_path), (IMAGE, LABEL))
        assert f"{tmp_path / 'train'}, file 7: the image 'dog/3.png' cannot be" in str(error.value)

    def test_files_of_two_kinds(self, tmp_path):
        pictures(tmp_path)
        wav(tmp_path / "cat" / "meow.wav")
        with pytest.raises(InputError, match=r"several kinds .*: 1 of audio and 10 of image"):
            load(str(tmp_path), (IMAGE, LABEL))

    def test_a_split_in_another_layout(self, tmp_path):
        pictures(tmp_path / "train")
        png(tmp_path / "test" / "1.png")
        with pytest.raises(InputError, match=r"test is not laid out like .*train"):
            load(str(tmp_path), (IMAGE, LABEL))


class TestNewRows:
    def test_a_folder_of_pictures(self, tmp_path):
        for i in range(3):
            png(tmp_path / "new" / f"{i}.png", i)
        found, _ = read_rows(tmp_path / "new", (IMAGE,))
        assert [Path(cell).name for cell in found["image"]] == ["0.png", "1.png", "2.png"]

    def test_one_picture(self, tmp_path):
        found, _ = read_rows(png(tmp_path / "a.png"), (IMAGE,))
        assert found["image"][:] == [str(tmp_path / "a.png")]

    def test_a_folder_with_labels(self, tmp_path):
        pictures(tmp_path, 4)
        found, _ = read_rows(tmp_path, (IMAGE, LABEL))
        assert found["label"][:] == ["cat", "cat", "dog", "dog"]

    def test_a_folder_of_nothing(self, tmp_path):
        with pytest.raises(InputError, match="a folder without images or recordings"):
            read_rows(tmp_path, (IMAGE,))


class TestMetadata:
    @pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
    def test_a_list_of_files(self, name, write, tmp_path):
        for split in ("train", "test"):
            rows = [{"file_name": f"p/{i}.png", "category": "ab"[i % 2]} for i in range(20)]
            for i in range(20):
                png(tmp_path / "data" / split / "p" / f"{i}.png", i + 50 * (split == "test"))
            write(f"data/{split}/{name}", rows)
        splits = load(str(tmp_path / "data"), (IMAGE, LABEL))
        assert sizes(splits) == [18, 2, 20]
        assert all(Path(cell).is_file() for cell in splits.test["image"])

    def test_a_file_that_is_not_there(self, write, tmp_path):
        folder = write("data/metadata.csv", "file_name,label\nno.png,a\n").parent
        with pytest.raises(InputError) as error:
            load(str(folder), (IMAGE, LABEL))
        expected = f"{folder / 'metadata.csv'}, line 2: there is no file for the image 'no.png' in"
        assert expected in str(error.value)

    def test_a_list_without_files(self, write):
        folder = write("data/metadata.csv", "file_nam,label\nno.png,a\n").parent
        with pytest.raises(InputError, match=r"it needs a column file_name; nearest: 'file_nam'"):
            load(str(folder), (IMAGE, LABEL))


class TestPairs:
    def test_images_with_masks(self, tmp_path):
        for split, n in (("train", 10), ("test", 2)):
            for i in range(n):
                png(tmp_path / split / "images" / f"{i}.jpg", i + 20 * (split == "test"))
                png(tmp_path / split / "masks" / f"{i}.png", i, mode="L")
        splits = load(str(tmp_path), (IMAGE, MASK))
        assert sizes(splits) == [9, 1, 2]
        one = splits.train[0]
        assert Path(one["image"]).stem == Path(one["mask"]).stem

    def test_an_image_without_a_mask(self, tmp_path):
        for i in range(3):
            png(tmp_path / "images" / f"{i}.png")
        png(tmp_path / "masks" / "0.png", mode="L")
        with pytest.raises(InputError, match=r"file 2: there is no file .* 'masks/1\.png'"):
            load(str(tmp_path), (IMAGE, MASK))

    @shared
    def test_membranes(self):
        splits = load(str(DATA / "isbi_membrane_segmentation"), (IMAGE, MASK))
        assert sizes(splits) == [24, 3, 3]
        assert set(np.unique(media.mask(splits.test["mask"][0]))) == {0, 255}


VOC = """<annotation><filename>{name}.png</filename>
<object><name>{label}</name><bndbox>
<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax>
</bndbox></object></annotation>"""


class TestVOC:
    @pytest.fixture
    def folder(self, tmp_path, write):
        for i in range(12):
            png(tmp_path / "voc" / "JPEGImages" / f"{i}.png", i, size=(40, 30))
            annotation = VOC.format(name=i, label="ab"[i % 2], box=(1, 3, 40, 20))
            write(f"voc/Annotations/{i}.xml", annotation)
        return tmp_path / "voc"

    def test_boxes_begin_at_zero(self, folder):
        splits = load(str(folder), (IMAGE, BOXES))
        assert sizes(splits) == [10, 1, 1]
        assert splits.train["boxes"][0]["boxes"] == [[0, 2, 40, 18]]

    def test_its_lists_are_the_splits(self, folder, write):
        for name, stems in (("train", range(8)), ("val", (8, 9)), ("test", (10, 11))):
            write(f"voc/ImageSets/Main/{name}.txt", "".join(f"{stem}\n" for stem in stems))
        assert sizes(load(str(folder), (IMAGE, BOXES))) == [8, 2, 2]

    @pytest.mark.parametrize(
        ("annotation", "reason"),
        [
            (VOC.format(name=3, label="a", box=(5, 5, 5, 9)), "a box has no area"),
            (VOC.format(name=3, label="a", box=(5, 5, 45, 9)), "box 1, [4, 4, 41, 5], reaches"),
            (VOC.format(name=3, label="", box=(5, 5, 9, 9)), "box 1 has no label"),
            (VOC.format(name=3, label="a", box=(5, "x", 9, 9)), "the bndbox of an object"),
            (VOC.format(name="no", label="a", box=(5, 5, 9, 9)), "there is no file for the image"),
            ("<annotation>", "no readable XML (no element found"),
            (None, "there is no such file in"),
        ],
    )
    def test_what_is_broken_names_its_row(self, annotation, reason, folder, write):
        if annotation is None:
            (folder / "Annotations" / "3.xml").unlink()
            write("voc/ImageSets/Main/train.txt", "0\n1\n2\n3\n")
        else:
            write("voc/Annotations/3.xml", annotation)
        where = "line 4" if annotation is None else "file 6"  # after 0, 1, 10, 11, 2
        with pytest.raises(InputError) as error:
            load(str(folder), (IMAGE, BOXES))
        assert f", {where}: 3.xml: {reason}" in str(error.value)

    @shared
    def test_blood_cells(self, tmp_path):
        for name in ("Annotations", "JPEGImages"):
            shutil.copytree(DATA / "bccd_detection" / name, tmp_path / name)
        splits = load(str(tmp_path), (IMAGE, BOXES))
        assert sum(sizes(splits)) == 106
        assert {name for cell in splits.train["boxes"] for name in cell["labels"]} == {
            *("RBC", "WBC", "Platelets")
        }

    @shared
    def test_lists_that_name_more_than_there_is(self):
        with pytest.raises(
            InputError, match=r"train\.txt, line \d+: .*\.xml: there is no such file in"
        ):
            load(str(DATA / "bccd_detection"), (IMAGE, BOXES))
        splits = load(str(DATA / "bccd_detection"), (IMAGE, BOXES), skip_bad_rows=True)
        assert sizes(splits) == [61, 21, 24]


class TestCOCO:
    @pytest.fixture
    def coco(self, tmp_path):
        def coco(path, folder, n=12, **changes):
            for i in range(n):
                png(tmp_path / folder / f"{i}.png", i, size=(40, 30))
            one = {"category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 0}
            made = {
                "images": [{"id": 100 + i, "file_name": f"{i}.png"} for i in range(n)],
                "annotations": [{"id": i, "image_id": 100 + i, **one} for i in range(1, n)],
                "categories": [{"id": 7, "name": "cat"}],
                **changes,
            }
            target = tmp_path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(made))
            return target

        return coco

    @pytest.mark.parametrize("images", [".", "images"])
    def test_one_file(self, images, coco):
        found, _ = read_rows(coco("x.json", images), (IMAGE, BOXES))
        assert len(found) == 12
        assert found["boxes"][0] == {"boxes": [], "labels": []}
        assert found["boxes"][1] == {"boxes": [[1, 2, 3, 4]], "labels": ["cat"]}

    def test_annotations_beside_folders_of_images(self, coco, tmp_path):
        coco("c/annotations/instances_train2017.json", "c/train2017")
        coco("c/annotations/instances_val2017.json", "c/images/val2017", 2)
        coco("c/annotations/captions_val2017.json", "c/val2017", 1)
        splits = load(str(tmp_path / "c"), (IMAGE, BOXES))
        assert (len(splits.train), len(splits.validation)) == (11, 2)

    def test_a_file_in_the_folder_of_each_split(self, coco, tmp_path):
        coco("c/train/_annotations.coco.json", "c/train")
        coco("c/test/_annotations.coco.json", "c/test", 3)
        assert len(load(str(tmp_path / "c"), (IMAGE, BOXES)).test) == 3

    def test_crowds_are_no_objects(self, coco):
        crowd = {"image_id": 100, "category_id": 7, "bbox": [0, 0, 9, 9], "iscrowd": 1}
        found, _ = read_rows(coco("x.json", ".", annotations=[crowd]), (IMAGE, BOXES))
        assert found["boxes"][0]["boxes"] == []

    @pytest.mark.parametrize(
        ("one", "reason"),
        [
            ({"image_id": 5}, "image 1: annotation 1 is of the image 5, which the file does not"),
            ({"category_id": 1}, "image 1: annotation 1 is of the category 1, which the file"),
            ({"bbox": [0, 0, 0, 5]}, "image 2: 1.png: box 1 has no area"),
            ({"bbox": None}, "image 2: 1.png: box 1 is not given as"),
        ],
    )
    def test_an_annotation_that_cannot_be(self, one, reason, coco):
        given = {"image_id": 101, "category_id": 7, "bbox": [0, 0, 9, 9], **one}
        path = coco("x.json", ".", annotations=[given])
        with pytest.raises(InputError) as error:
            read_rows(path, (IMAGE, BOXES))
        assert f"{path}, {reason}" in str(error.value)

    def test_an_image_without_a_name(self, coco):
        path = coco("x.json", ".", images=[{"id": 1}])
        with pytest.raises(InputError, match=r"an id and a file_name, .*; one has no 'file_name'"):
            read_rows(path, (IMAGE, BOXES))


def test_masks_are_read_by_their_classes(tmp_path):
    """A file that is no PNG of numbers, beside one that is."""
    png(tmp_path / "images" / "0.png")
    png(tmp_path / "images" / "1.png")
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(png(tmp_path / "masks" / "0.png"))
    png(tmp_path / "masks" / "1.png")
    with pytest.raises(InputError, match=r"file 2: the mask 'masks/1\.png' has colours \(RGB\)"):
        load(str(tmp_path), (IMAGE, MASK))
