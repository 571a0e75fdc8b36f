"""Folders written by `datasets`, folders that only it knows, and the hub without a network."""

import datasets
import pytest

from trimtab.core.errors import InputError
from trimtab.data import load


@pytest.fixture
def made():
    """made(n, withheld=False) -> a `datasets.Dataset` with class labels."""

    def made(n, withheld=False, start=0):
        features = datasets.Features(
            {
                "sentence": datasets.Value("string"),
                "label": datasets.ClassLabel(names=["no", "yes"]),
            }
        )
        numbers = range(start, start + n)
        labels = [-1 if withheld else i % 2 for i in numbers]
        return datasets.Dataset.from_dict(
            {"sentence": [f"text {i}" for i in numbers], "label": labels}, features
        )

    return made


@pytest.fixture
def hub(monkeypatch):
    """hub(answer) puts `answer` in place of the hub; returns the calls of `load_dataset`."""

    def hub(answer):
        calls = []

        def load_dataset(name, config=None):
            calls.append((name, config))
            return answer

        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return hub


def test_a_folder_of_save_to_disk_with_splits(tmp_path, made, columns):
    found = {"train": made(20), "validation": made(4, start=20), "test": made(6, start=24)}
    datasets.DatasetDict(found).save_to_disk(tmp_path / "saved")
    splits = load(str(tmp_path / "saved"), columns)
    assert [len(d) for d in (splits.train, splits.validation, splits.test)] == [20, 4, 6]
    assert splits.train[1] == {"text": "text 1", "label": "yes"}
    assert splits.notes == ()


def test_a_folder_of_save_to_disk_with_one_data_set(tmp_path, made, columns):
    made(40).save_to_disk(tmp_path / "saved")
    splits = load(str(tmp_path / "saved"), columns)
    assert [len(d) for d in (splits.train, splits.validation, splits.test)] == [32, 4, 4]


def test_a_folder_of_shards_is_read_by_datasets(write, reviews, columns, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write("data/train-00000-of-00002.csv", reviews(20))
    write("data/train-00001-of-00002.csv", reviews(20, 20))
    folder = write("data/test-00000-of-00001.csv", reviews(6, 40)).parent
    splits = load(str(folder), columns)
    assert [len(d) for d in (splits.train, splits.validation, splits.test)] == [36, 4, 6]


def test_a_damaged_folder_of_save_to_disk(write, columns):
    folder = write("saved/dataset_dict.json", '{"splits": ["train"]}').parent
    with pytest.raises(
        InputError, match=r"cannot be read by `datasets` \(.*\); it holds dataset_d"
    ):
        load(str(folder), columns)


def test_a_folder_that_datasets_cannot_read_either(write, columns, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = write("data/shard.parquet", "no parquet").parent
    with pytest.raises(InputError, match=r"cannot be read by `datasets` \(.*it holds shard\.parq"):
        load(str(folder), columns)


def test_a_hub_name_with_a_configuration(hub, made, columns):
    calls = hub(datasets.DatasetDict(train=made(30), dev=made(4, start=30), unsupervised=made(5)))
    splits = load("owner/name:config", columns)
    assert calls == [("owner/name", "config")]
    assert len(splits.validation) == 4
    assert splits.origin == "owner/name:config"


def test_a_test_without_labels_is_left_aside(hub, made, columns):
    hub(datasets.DatasetDict(train=made(30), test=made(9, withheld=True)))
    splits = load("glue:sst2", columns)
    assert "test has no labels and is left aside." in splits.notes
    assert len(splits.test) == 3


def test_an_empty_split(hub, made, columns):
    hub(datasets.DatasetDict(train=made(30), test=made(0)))
    with pytest.raises(InputError, match="name, split 'test': no rows"):
        load("name", columns)


def test_a_hub_data_set_without_train(hub, made, columns):
    hub(datasets.DatasetDict(trian=made(30), test=made(3)))
    with pytest.raises(InputError, match="name has no split 'train'; nearest: 'trian'"):
        load("name", columns)


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path, write, monkeypatch, columns):
    def refuse(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write("reviews/train.csv", "text,label\n")
    monkeypatch.chdir(tmp_path)
    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(InputError) as error:
        load("reviws", columns)
    message = str(error.value)
    assert message.startswith(
        "'reviws': no file or folder of this name; nearest: 'reviews'. "
        "Nor could it be read from the hub: "
    )
    assert "\n" not in message
    assert before == datasets.config.HF_HUB_OFFLINE


def test_a_path_is_not_sought_on_the_hub(monkeypatch, columns):
    def forbidden(*_, **__):
        pytest.fail("the hub was asked for a path")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", forbidden)
    for source in ("", "./reviews", "nowhere/train.csv", "a/b/c", "train.tsv"):
        with pytest.raises(InputError):
            load(source, columns)
