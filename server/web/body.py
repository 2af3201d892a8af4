"""The JSON object of a request, read field by field; everything wrong with it is said at once."""

import json
from typing import Any

from starlette.requests import Request

from nanogpt.option import Violation, unknown_key
from server.errors import InvalidArgument, ResourceExhausted

MAX_BODY_BYTES = 2 << 20


class Body:
    """Fields of a request. After the last one is read, call `check` or `found`."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self._known: list[str] = []
        self.violations: list[Violation] = []

    @classmethod
    async def read(cls, request: Request) -> "Body":
        """Raises InvalidArgument if the body is not a JSON object, ResourceExhausted if it is too
        large."""
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_BODY_BYTES:
                raise ResourceExhausted(
                    f"the body is larger than {MAX_BODY_BYTES} bytes", limit="body_bytes"
                )
        try:
            values = json.loads(data) if data else {}
            json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise InvalidArgument([Violation("", "the body must be a JSON object")])
        return cls(values)

    def text(self, name: str, default: str = "") -> str:
        return str(self._get(name, default, str, "text"))

    def integer(self, name: str, default: int) -> int:
        return int(self._get(name, default, int, "a whole number"))

    def boolean(self, name: str, default: bool = False) -> bool:
        return bool(self._get(name, default, bool, "true or false"))

    def mapping(self, name: str) -> dict[str, Any]:
        return dict(self._get(name, {}, dict, "an object"))

    def found(self) -> list[Violation]:
        """All that is wrong with the fields that were read, and those that nobody reads."""
        unknown = [unknown_key(key, self._known) for key in self._values if key not in self._known]
        return self.violations + unknown

    def check(self) -> None:
        """Raises InvalidArgument if anything is wrong."""
        if found := self.found():
            raise InvalidArgument(found)

    def _get(self, name: str, default: Any, kind: type, allowed: str) -> Any:
        self._known.append(name)
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.violations.append(Violation(name, f"must be {allowed}"))
            return default
        return value
