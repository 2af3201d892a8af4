import numpy as np
import pytest

from nanogpt.datasets import report
from nanogpt.datasets.report import TokenFindings, warnings_about


@pytest.fixture
def look_over(tmp_path):
    """Looks arrays over, by way of files."""

    def look(train: np.ndarray, val: np.ndarray, progress) -> TokenFindings:
        for name, tokens in (("train.bin", train), ("val.bin", val)):
            tokens.astype("<u2").tofile(tmp_path / name)
        return report.look_over(tmp_path / "train.bin", tmp_path / "val.bin", progress)

    return look


def ignore(position: int) -> None:
    """Nobody watches."""


def random_tokens(seed: int, count: int, vocab_size: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).integers(vocab_size, size=count).astype(np.uint16)


def brute_overlap(train: np.ndarray, val: np.ndarray) -> float:
    """Share of the validation windows that are windows of the training split, by comparing."""
    seen = {train[i : i + 64].tobytes() for i in range(len(train) - 63)}
    windows = [val[i : i + 64].tobytes() for i in range(0, len(val) - 63, 64)]
    return sum(window in seen for window in windows) / len(windows)


@pytest.mark.parametrize("chunk_tokens", [64, 100, 1 << 16])
def test_overlap_is_that_of_comparing_all_windows(look_over, monkeypatch, chunk_tokens):
    monkeypatch.setattr(report, "_CHUNK_TOKENS", chunk_tokens)
    train, val = random_tokens(1, 3000), random_tokens(2, 64 * 10 + 5)
    val[128 : 128 + 64] = train[77 : 77 + 64]
    val[320 : 320 + 128] = train[len(train) - 128 :]
    val[0:64] = val[128:192]  # the same window twice
    findings = look_over(train, val, ignore)
    assert findings.train_val_overlap == brute_overlap(train, val) == 0.4


def test_two_letters_do_not_collide(look_over):
    train, val = random_tokens(1, 20_000, 2), random_tokens(2, 6400, 2)
    assert look_over(train, val, ignore).train_val_overlap == brute_overlap(train, val) == 0
    assert look_over(val, val, ignore).train_val_overlap == 1


@pytest.mark.parametrize("lengths", [(1, 1), (63, 64), (64, 63), (64, 64)])
def test_splits_shorter_than_a_window(look_over, lengths):
    train, val = (random_tokens(1, length) for length in lengths)
    expected = float(lengths == (64, 64))
    assert look_over(train, val, ignore).train_val_overlap == expected


def test_many_windows_are_sampled(look_over, monkeypatch):
    monkeypatch.setattr(report, "MAX_VAL_WINDOWS", 100)
    val = random_tokens(2, 64 * 1000)
    train = np.concatenate([random_tokens(1, 1000), val[: 64 * 250]])
    assert look_over(train, val, ignore).train_val_overlap == pytest.approx(0.25, abs=0.01)


def test_tokens_are_counted(look_over):
    train = np.array([1, 2, 3, 3], dtype=np.uint16)
    val = np.array([3, 9, 9, 65535], dtype=np.uint16)
    findings = look_over(train, val, ignore)
    assert (findings.used_tokens, findings.unknown_val_tokens) == (5, 3)


def test_progress_ends_at_the_training_split(look_over):
    seen: list[int] = []
    look_over(random_tokens(1, 200_000), random_tokens(2, 100), seen.append)
    assert seen == [65536, 131072, 196608, 200_000]


SOUND = TokenFindings(
    train_tokens=1000,
    val_tokens=257,
    used_tokens=9,
    unknown_val_tokens=0,
    train_val_overlap=0.0,
)


def warned(findings: TokenFindings = SOUND, **counts: int) -> list[str]:
    return warnings_about(
        findings,
        **{
            "empty_documents": 0,
            "undecodable_characters": 0,
            "files_left_out": 0,
            **counts,
        },
    )


def test_a_sound_dataset_has_no_warnings():
    assert warned() == []


def test_warnings_are_sentences():
    found = warned(
        TokenFindings(1000, 256, 9, unknown_val_tokens=1, train_val_overlap=0.015625),
        empty_documents=2,
        undecodable_characters=1,
        files_left_out=1234,
    )
    assert found == [
        "The validation split has 256 tokens, too few for blocks of 256: take a smaller "
        "block_size, or more text.",
        "1.56% of the validation split also stands in the training split: its loss will be better "
        "than on new text.",
        "1 token of the validation split never occurs in the training split.",
        "1 character could not be decoded and stands as U+FFFD.",
        "2 documents without text were left out.",
        "1,234 files were left out: only .txt, .jsonl and .parquet files are read.",
    ]
