"""Settings of a config.json: those that must be as they are, and the sizes of the network."""

from collections.abc import Mapping
from typing import Any

from nanogpt.config import ModelConfig
from nanogpt.option import InvalidConfig


def check_settings(settings: Mapping[str, Any], accepted: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises ValueError unless each setting has an accepted value; the first is the default."""
    for name, values in accepted.items():
        value = settings.get(name, values[0])
        if value not in values:
            allowed = " or ".join(repr(choice) for choice in values)
            raise ValueError(f"config.json has {name} {value!r}; must be {allowed}")


def read_sizes(settings: Mapping[str, Any], names: Mapping[str, str], **known: Any) -> ModelConfig:
    """Our configuration of settings, by their name, which are fields of it, and `known` fields.

    Raises ValueError if one is missing or out of range.
    """
    missing = [name for name in names if name not in settings]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    try:
        return ModelConfig(**{ours: settings[theirs] for theirs, ours in names.items()}, **known)
    except InvalidConfig as error:
        raise ValueError(f"config.json: {error}") from None
