import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from nanogpt.datasets.dataset import BadDataset, Dataset, DatasetMeta
from nanogpt.tokenizer import CharTokenizer, GPT2Tokenizer

CHARACTERS = ["\n", " ", "a", "é", "z"]
ITOS = dict(enumerate(CHARACTERS))
STOI = {character: i for i, character in ITOS.items()}
GEM_META = {"vocab_size": 5, "itos": {str(i): c for i, c in ITOS.items()}, "stoi": STOI}
NANOGPT_META = {"vocab_size": 5, "itos": ITOS, "stoi": STOI}
TRAIN, VAL = [2, 3, 1, 4, 4, 0], [0, 2]

OUR_META = DatasetMeta(
    tokenizer=CharTokenizer(CHARACTERS).to_json(),
    vocab_size=5,
    train_tokens=6,
    val_tokens=2,
    characters=8,
    val_ratio=0.25,
    encoding="utf-8",
    source_sha256="00" * 32,
    create_time=1.5,
)


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def folder(tmp_path):
    """Token files without any description."""
    np.array(TRAIN, dtype="<u2").tofile(tmp_path / "train.bin")
    np.array(VAL, dtype="<u2").tofile(tmp_path / "val.bin")
    return tmp_path


def write_meta(folder: Path, content: object) -> None:
    (folder / "meta.json").write_text(json.dumps(content), "utf-8")


def test_our_own_description(folder):
    write_meta(folder, OUR_META.to_json())
    dataset = Dataset.open(folder)
    assert dataset.meta == OUR_META
    assert dataset.tokenizer.decode(dataset.tokens("train").tolist()) == "aé zz\n"
    assert dataset.tokens("val").tolist() == VAL


def test_gem_description(folder):
    write_meta(folder, GEM_META)
    dataset = Dataset.open(folder)
    assert dataset.tokenizer.decode(TRAIN) == "aé zz\n"
    assert dataset.meta.tokenizer == CharTokenizer(CHARACTERS).to_json()
    assert (dataset.meta.train_tokens, dataset.meta.val_tokens) == (6, 2)
    assert (dataset.meta.characters, dataset.meta.val_ratio) == (8, 0.25)
    assert (dataset.meta.encoding, dataset.meta.source_sha256) == (None, None)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nanogpt_description(folder, protocol):
    (folder / "meta.pkl").write_bytes(pickle.dumps(NANOGPT_META, protocol))
    assert Dataset.open(folder).tokenizer.encode("aé zz\n") == TRAIN


def test_no_description_means_gpt2(folder):
    dataset = Dataset.open(folder)
    assert isinstance(dataset.tokenizer, GPT2Tokenizer)
    assert (dataset.meta.vocab_size, dataset.meta.characters) == (50257, None)


def test_our_description_wins_over_a_stale_pickle(folder):
    (folder / "meta.pkl").write_bytes(b"stale")
    write_meta(folder, OUR_META.to_json())
    assert Dataset.open(folder).meta == OUR_META


def test_the_gem_can_read_our_description():
    content = json.loads(json.dumps(OUR_META.to_json()))
    assert {key: content[key] for key in GEM_META} == GEM_META


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_runs_no_code(folder, protocol):
    harmful = {**NANOGPT_META, "itos": Harmful(folder / "harm")}
    (folder / "meta.pkl").write_bytes(pickle.dumps(harmful, protocol))
    with pytest.raises(BadDataset, match=r"^meta.pkl is damaged: .*mkdir"):
        Dataset.open(folder)
    assert not (folder / "harm").exists()


def test_tokens_are_one_read_only_map_of_little_endian_uint16(folder):
    dataset = Dataset.open(folder)
    tokens = dataset.tokens("train")
    assert tokens is dataset.tokens("train")
    assert isinstance(tokens, np.memmap) and tokens.dtype == np.dtype("<u2")
    assert not tokens.flags.writeable


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("data", "problem"), [(None, "is missing"), (b"", "is empty"), (b"abc", "has 3 bytes")]
)
def test_damaged_token_files_are_named(folder, split, data, problem):
    path = folder / f"{split}.bin"
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(BadDataset, match=f"^{split}.bin {problem}") as caught:
        Dataset.open(folder)
    assert str(folder) not in str(caught.value)


@pytest.mark.parametrize("split", ["train", "val"])
def test_token_files_must_be_as_long_as_declared(folder, split):
    write_meta(folder, {**OUR_META.to_json(), f"{split}_tokens": 7})
    with pytest.raises(BadDataset, match=rf"^{split}.bin has \d tokens, .* says that it has 7$"):
        Dataset.open(folder)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "not a mapping"),
        ({}, "itos is missing"),
        ({**GEM_META, "vocab_size": 6}, "each id below vocab_size, 6"),
        ({**GEM_META, "itos": {**GEM_META["itos"], "4": 7}}, "not text"),
        ({**GEM_META, "itos": {**GEM_META["itos"], "4": "ab"}}, "'ab'"),
        ({**GEM_META, "itos": {"0": "a", "2": "b"}, "vocab_size": 2}, "each id"),
        ({**OUR_META.to_json(), "tokenizer": {"kind": "word"}}, "word"),
        ({**OUR_META.to_json(), "tokenizer": 3}, "tokenizer is 3"),
        ({**OUR_META.to_json(), "vocab_size": 6}, "vocab_size is 6"),
        ({**OUR_META.to_json(), "val_ratio": "much"}, "val_ratio is 'much'"),
        ({"tokenizer": {"kind": "gpt2"}}, "vocab_size is missing"),
    ],
)
def test_damaged_descriptions_say_what_is_wrong(folder, content, problem):
    write_meta(folder, content)
    with pytest.raises(BadDataset, match=f"^meta.json is damaged: .*{problem}"):
        Dataset.open(folder)


@pytest.mark.parametrize("name", ["meta.json", "meta.pkl"])
def test_cut_descriptions_are_damaged(folder, name):
    whole = pickle.dumps(NANOGPT_META) if name == "meta.pkl" else json.dumps(GEM_META).encode()
    for length in range(0, len(whole) - 1, 7):
        (folder / name).write_bytes(whole[:length])
        with pytest.raises(BadDataset, match=f"^{name} is damaged"):
            Dataset.open(folder)


@pytest.mark.parametrize("split", ["train", "val"])
def test_tokens_of_another_program_must_be_in_the_vocabulary(folder, split):
    """Ours are, so that theirs alone have to be read."""
    write_meta(folder, GEM_META)
    Dataset.open(folder).check_vocabulary()
    tokens = {"train": TRAIN, "val": VAL}[split]
    np.array([*tokens[:-1], 5], dtype="<u2").tofile(folder / f"{split}.bin")
    with pytest.raises(BadDataset, match=rf"{split}\.bin has the token 5, but .*\(char\) has 5"):
        Dataset.open(folder).check_vocabulary()
    write_meta(folder, OUR_META.to_json())
    Dataset.open(folder).check_vocabulary()


def test_a_missing_folder_is_a_bad_dataset(tmp_path):
    with pytest.raises(BadDataset, match=r"^train.bin is missing"):
        Dataset.open(tmp_path / "nowhere")
