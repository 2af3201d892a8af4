"""How a text is sampled: how each token is chosen, and when it ends. No torch.

Each field is an option (nanogpt/option.py). Constructing checks every field and raises one
`InvalidConfig` that names all that are wrong.
"""

from dataclasses import dataclass, field

from nanogpt.option import InvalidConfig, Range, Violation, option, range_violations

MAX_LOGIT_BIASES = 1024


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How each token is chosen. Semantics: protos/nanogpt/v1/inference.proto, SamplingParams."""

    temperature: float = option(1.0, "Softmax temperature; 0 is greedy.", ge=0, le=2)
    top_k: int | None = option(None, "Sample from the k likeliest tokens only.", ge=1)
    top_p: float | None = option(
        None, "Sample from the smallest likeliest set with this total.", gt=0, le=1
    )
    min_p: float | None = option(
        None, "Drop tokens less likely than this share of the likeliest.", ge=0, le=1
    )
    repetition_penalty: float = option(1.0, "Weakens tokens in prompt and output.", ge=0.01, le=10)
    presence_penalty: float = option(0.0, "Weakens tokens in the output, once.", ge=-2, le=2)
    frequency_penalty: float = option(0.0, "Weakens by count in the output.", ge=-2, le=2)
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int = option(0, "Seeds the draws.", ge=0, lt=1 << 64)

    def __post_init__(self) -> None:
        found = range_violations(self)
        bias_range = Range(ge=-100, le=100)
        if len(self.logit_bias) > MAX_LOGIT_BIASES:
            found.append(
                Violation(
                    "logit_bias",
                    f"must have at most {MAX_LOGIT_BIASES} entries, got {len(self.logit_bias)}",
                )
            )
        for token_id, value in self.logit_bias.items():
            if not bias_range.allows(value):
                found.append(
                    Violation(f"logit_bias[{token_id}]", f"must be {bias_range}, got {value!r}")
                )
        if found:
            raise InvalidConfig(found)


@dataclass(frozen=True, slots=True)
class StoppingParams:
    """When a generation stops. Semantics: protos/nanogpt/v1/inference.proto, StoppingParams."""

    max_new_tokens: int = option(128, "Largest number of tokens to sample.", ge=1, le=65536)
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_new_tokens: int = option(0, "Sample at least this many tokens.", ge=0)
    ignore_end_of_text: bool = option(False, "Treat end-of-text as any other token.")
    include_stop_string: bool = option(False, "Return the stop string with the text.")
    context_overflow: str = option(
        "roll", "What to do when the window is full.", choices=("roll", "stop", "exact")
    )

    def __post_init__(self) -> None:
        found = range_violations(self)
        if not found and self.min_new_tokens > self.max_new_tokens:
            found.append(
                Violation(
                    "min_new_tokens",
                    f"must be in [0, max_new_tokens] = [0, {self.max_new_tokens}], "
                    f"got {self.min_new_tokens}",
                )
            )
        if len(self.stop_strings) > 4:
            found.append(
                Violation("stop_strings", f"must be at most 4, got {len(self.stop_strings)}")
            )
        for index, text in enumerate(self.stop_strings):
            if not 1 <= len(text) <= 256:
                found.append(
                    Violation(
                        f"stop_strings[{index}]",
                        f"must have 1 to 256 characters, got {len(text)}",
                    )
                )
        if len(self.stop_token_ids) > 64:
            found.append(
                Violation("stop_token_ids", f"must be at most 64, got {len(self.stop_token_ids)}")
            )
        if found:
            raise InvalidConfig(found)
