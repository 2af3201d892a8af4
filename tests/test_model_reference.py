"""How models are named, and what is refused before it can reach the disk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidArgument
from server.models.reference import ModelReference, parse_reference
from server.names import is_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ModelReference()),
        ("gpt2", ModelReference(name="gpt2")),
        ("gpt2@0", ModelReference(name="gpt2", step=0)),
        ("my_model-3@250", ModelReference(name="my_model-3", step=250)),
        ("job:0192a3b4", ModelReference(job_id="0192a3b4")),
        ("job:0192a3b4@250", ModelReference(job_id="0192a3b4", step=250)),
    ],
)
def test_every_way_to_name_a_model(text, expected):
    assert parse_reference(text, "model") == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        *("..", "../x", "/etc/passwd", "a/b", "a\\b", "A", "a\n", "a\0", ".hidden", "é", "a" * 64),
        *("a@", "@1", "a@-1", "a@1.5", "a@1@2", "a@٣", "a@" + "9" * 19),
        *("job:", "job:../x", "jobs:a", ":a", "job:job:a"),
        *("job:@1", "job:a@", "job:a@-1", "job:a@1@2", "job:../x@1", "a@job:1"),
    ],
)
def test_everything_else_is_refused_by_field(text):
    with pytest.raises(InvalidArgument) as refused:
        parse_reference(text, "name")
    assert [violation.field for violation in refused.value.violations] == ["name"]


@given(st.text())
def test_whatever_is_accepted_is_a_plain_name(text):
    try:
        found = parse_reference(text, "model")
    except InvalidArgument:
        return
    assert all(is_name(part) for part in (found.name, found.job_id) if part is not None)
