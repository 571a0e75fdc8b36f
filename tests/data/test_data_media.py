"""Images, recordings, boxes and masks: what cells name, what is in them, and what is refused."""

import struct

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from PIL import Image
from small_media import drawn, png, png_bytes, wav

from trimtab.core.errors import InputError
from trimtab.data import Column, load, media, read_rows

IMAGE, AUDIO = Column("image", (), kind="image"), Column("audio", (), kind="audio")
BOXES, MASK = Column("boxes", ("objects",), kind="boxes"), Column("mask", (), kind="mask")
LABEL = Column("label", (), kind="label")


def refused(path, columns):
    with pytest.raises(InputError) as error:
        read_rows(path, columns)
    return str(error.value)


class TestImages:
    def test_a_path_is_relative_to_the_file_that_names_it(self, write, tmp_path, monkeypatch):
        png(tmp_path / "pictures" / "a.png")
        path = write(
            "x.csv", [{"image": "pictures/a.png"}, {"image": str(tmp_path / "pictures/a.png")}]
        )
        monkeypatch.chdir("/")
        found, _ = read_rows(path, (IMAGE,))
        assert found["image"][:] == [str(tmp_path / "pictures" / "a.png")] * 2
        assert media.image(found["image"][0]).size == media.size(found["image"][0]) == (8, 6)

    def test_bytes_in_parquet(self, tmp_path):
        rows = [{"image": {"bytes": png_bytes(i), "path": "a.png"}} for i in range(2)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
        found, _ = read_rows(tmp_path / "x.parquet", (IMAGE,))
        assert found.features["image"] == datasets.Value("binary")
        pixels = np.asarray(media.image(found["image"][1]))
        assert (pixels == np.asarray(drawn(1))).all()

    def test_bytes_and_paths_in_one_column(self, tmp_path):
        png(tmp_path / "a.png", 5)
        given = [{"bytes": png_bytes(1), "path": None}, {"bytes": None, "path": "a.png"}]
        rows = [{"image": one} for one in given]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
        found, _ = read_rows(tmp_path / "x.parquet", (IMAGE,))
        assert (np.asarray(media.image(found["image"][1])) == np.asarray(drawn(5))).all()

    def test_a_data_set_with_decoded_images(self, tmp_path):
        made = {"image": [drawn(i) for i in range(20)], "label": ["a", "b"] * 10}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
        datasets.Dataset.from_dict(made, features).save_to_disk(tmp_path / "saved")
        splits = load(str(tmp_path / "saved"), (IMAGE, LABEL))
        assert media.image(splits.train["image"][0]).size == (8, 6)

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("none.png", r"there is no file for the image 'none.png' in "),
            ("cut.png", "the image 'cut.png' cannot be read as an image"),
            ("cut.jpg", "the image 'cut.jpg' cannot be read as an image"),
            ("text.png", "the image 'text.png' cannot be read as an image"),
            ("empty.png", "the image 'empty.png' cannot be read as an image"),
            ("", "empty image"),
        ],
    )
    def test_what_is_no_image_names_file_and_row(self, name, reason, write, tmp_path):
        png(tmp_path / "good.png")
        (tmp_path / "text.png").write_text("no picture")
        (tmp_path / "empty.png").touch()
        for suffix in ("png", "jpg"):
            whole = png(tmp_path / f"whole.{suffix}", size=(64, 64)).read_bytes()
            (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) * 2 // 3])
        path = write("x.jsonl", [{"image": "good.png"}, {"image": name}])
        assert f"{path}, line 2: {reason}" in refused(path, (IMAGE,))
        assert len(read_rows(path, (IMAGE,), skip_bad_rows=True)[0]) == 1

    def test_broken_bytes_name_the_row(self, tmp_path):
        rows = [{"image": png_bytes()}, {"image": b"nothing"}]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
        message = refused(tmp_path / "x.parquet", (IMAGE,))
        assert "x.parquet, row 2: the image cannot be read as an image" in message

    def test_what_is_transparent_is_white(self, tmp_path):
        clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
        clear.save(tmp_path / "a.png")
        assert media.image(str(tmp_path / "a.png")).getpixel((0, 0)) == (255, 255, 255)

    def test_deep_grey_keeps_its_contrast(self, tmp_path):
        Image.fromarray(np.array([[1000, 3000]], dtype=np.uint16)).save(tmp_path / "a.png")
        found = media.image(str(tmp_path / "a.png"))
        assert [found.getpixel((x, 0))[0] for x in (0, 1)] == [0, 255]

    def test_a_turned_photo_is_upright(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        drawn(size=(8, 6)).save(tmp_path / "a.jpg", exif=exif)
        assert media.size(str(tmp_path / "a.jpg")) == (6, 8)
        assert media.image(str(tmp_path / "a.jpg")).size == (6, 8)

    def test_pictures_that_train_has_too_are_noted(self, write, tmp_path):
        rows = [{"image": f"{i}.png", "label": "ab"[i % 2]} for i in range(20)]
        for i in range(20):
            png(tmp_path / "data" / f"{i}.png", i)
        png(tmp_path / "data" / "copy.png", 3)
        write("data/train.csv", rows)
        folder = write("data/test.csv", [{"image": "copy.png", "label": "a"}]).parent
        notes = load(str(folder), (IMAGE, LABEL)).notes
        assert (
            "1 of the 1 rows of test has the same image as a row of train, so its scores flatter."
            in notes
        )


class TestRecordings:
    def test_channels_are_joined_and_resampled(self, tmp_path):
        cell = str(wav(tmp_path / "a.wav", pitch=440, rate=44_100, channels=2))
        wave = media.audio(cell, 16_000)
        assert (wave.shape, wave.dtype) == ((3200,), np.float32)
        expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(3200) / 16_000)
        np.testing.assert_allclose(wave[200:-200], expected[200:-200], atol=2e-3)
        assert media.seconds(cell) == pytest.approx(0.2)

    def test_one_of_the_right_rate_is_as_it_lies(self, tmp_path):
        cell = wav(tmp_path / "a.wav")
        np.testing.assert_array_equal(
            media.audio(str(cell), 8000), soundfile.read(cell, dtype="float32")[0]
        )
        np.testing.assert_array_equal(
            media.audio(cell.read_bytes(), 8000), media.audio(str(cell), 8000)
        )

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("silent.wav", "the audio 'silent.wav' is silent"),
            ("slow.wav", "the audio 'slow.wav' claims 7 samples a second, which no recording has"),
            ("none.wav", "the audio 'none.wav' ends after 0 of 0 samples"),
            ("nan.wav", "the audio 'nan.wav' has samples that are no numbers"),
            ("text.wav", "the audio 'text.wav' cannot be read as a recording"),
            ("away.wav", "there is no file for the audio 'away.wav' in "),
        ],
    )
    def test_what_is_no_recording_names_file_and_row(self, name, reason, write, tmp_path):
        wav(tmp_path / "good.wav")
        wav(tmp_path / "silent.wav", loud=0)
        wav(tmp_path / "none.wav", seconds=0)
        soundfile.write(tmp_path / "nan.wav", np.full(800, np.nan), 8000, subtype="FLOAT")
        (tmp_path / "text.wav").write_text("no sound")
        slow = bytearray((tmp_path / "good.wav").read_bytes())
        slow[24:28] = struct.pack("<I", 7)
        (tmp_path / "slow.wav").write_bytes(slow)
        path = write("x.jsonl", [{"audio": "good.wav"}, {"audio": name}])
        assert f"{path}, line 2: {reason}" in refused(path, (AUDIO,))


class TestBoxes:
    @pytest.fixture
    def read(self, write, tmp_path):
        png(tmp_path / "a.png", size=(40, 30))

        def read(boxes):
            path = write("x.jsonl", [{"image": "a.png", "boxes": boxes}])
            return read_rows(path, (IMAGE, BOXES))[0]["boxes"][0]

        return read

    def test_every_form_says_the_same(self, read):
        expected = {"boxes": [[1, 2, 3, 4.5], [0, 0, 40, 30]], "labels": ["cat", "7"]}
        a, b = expected["boxes"]
        assert read(expected) == expected
        assert read([{"box": a, "label": "cat"}, {"bbox": b, "category": 7}]) == expected
        assert read({"bbox": [a, b], "category": ["cat", 7]}) == expected
        assert (
            read('[{"box": [1, 2, 3, 4.5], "label": "cat"}, {"box": [0, 0, 40, 30], "label": 7}]')
            == expected
        )

    @pytest.mark.parametrize("nothing", [[], "", {"boxes": [], "labels": []}])
    def test_an_image_without_boxes(self, nothing, read):
        assert read(nothing) == {"boxes": [], "labels": []}

    def test_a_pixel_beyond_is_cut(self, read):
        assert read([{"box": [-1, 5, 5, 26], "label": "a"}])["boxes"] == [[0, 5, 4, 25]]

    @pytest.mark.parametrize(
        ("boxes", "reason"),
        [
            ([{"box": [0, 0, 3, 0], "label": "a"}], "box 1 has no area: [0, 0, 3, 0]"),
            ([{"box": [0, 0, -3, 2], "label": "a"}], "box 1 has no area"),
            ([{"box": [0, 0, 3], "label": "a"}], "box 1 is not given as [x, y, width, height]"),
            ([{"box": [0, 0, 3, "x"], "label": "a"}], "the side of box 1 is 'x', not a finite"),
            ([{"box": [0, 0, 3, 3], "label": " "}], "box 1 has no label"),
            ([{"box": [0, 0, 3, 3]}], "box 1 has no label"),
            (
                [{"box": [0, 0, 3, 3], "label": "a"}, {"box": [30, 20, 12, 5], "label": "a"}],
                "box 2, [30, 20, 12, 5], reaches beyond its image of 40 × 30 pixels",
            ),
            ([{"box": [50, 0, 3, 3], "label": "a"}], "box 1, [50, 0, 3, 3], reaches beyond"),
            (["a"], 'box 1 is a str, not {"box": …, "label": …}'),
            ({"boxes": [[0, 0, 1, 1]], "labels": []}, "the boxes are 1 boxes with 0 labels"),
            ({"boxes": 3}, 'the boxes have no lists "boxes" and "labels"'),
            (None, "missing boxes"),
        ],
    )
    def test_a_box_that_cannot_be(self, boxes, reason, read):
        with pytest.raises(InputError) as error:
            read(boxes)
        assert f"x.jsonl, line 1: {reason}" in str(error.value)


class TestMasks:
    def test_pixels_are_classes(self, write, tmp_path):
        classes = np.arange(48, dtype=np.uint8).reshape(6, 8) % 3
        png(tmp_path / "a.png")
        Image.fromarray(classes).save(tmp_path / "m.png")
        path = write("x.csv", [{"image": "a.png", "mask": "m.png"}])
        found, _ = read_rows(path, (IMAGE, MASK))
        np.testing.assert_array_equal(media.mask(found["mask"][0]), classes)

    def test_a_palette_gives_its_numbers(self, tmp_path):
        picture = Image.fromarray(np.array([[0, 2], [1, 1]], dtype=np.uint8))
        picture.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
        picture.save(tmp_path / "m.png")
        assert media.mask(str(tmp_path / "m.png")).tolist() == [[0, 2], [1, 1]]

    @pytest.mark.parametrize(
        ("size", "mode", "reason"),
        [
            ((6, 8), "L", "the mask has 6 × 8 pixels, its image 8 × 6"),
            ((8, 6), "RGB", "the mask 'm.png' has colours (RGB), where the number of a class is"),
        ],
    )
    def test_a_mask_that_does_not_fit(self, size, mode, reason, write, tmp_path):
        png(tmp_path / "a.png")
        png(tmp_path / "m.png", size=size, mode=mode)
        path = write("x.csv", [{"image": "a.png", "mask": "m.png"}])
        assert f"{path}, line 2: {reason}" in refused(path, (IMAGE, MASK))
