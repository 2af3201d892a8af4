"""Names of models and datasets."""

import pytest

from server.names import is_name, name_violations


@pytest.mark.parametrize("name", ["a", "0", "gpt2", "shakespeare_char", "a-b_c", "x" * 63])
def test_names(name):
    assert is_name(name) and name_violations("model", name) == []


@pytest.mark.parametrize(
    "name", ["", "-a", "_a", ".", "..", "a/b", "a.b", "A", "é", "a\n", "a b", "a@1", "x" * 64]
)
def test_everything_else_is_refused_with_the_field_named(name):
    assert not is_name(name)
    [violation] = name_violations("model", name)
    assert violation.field == "model" and repr(name) in violation.description
