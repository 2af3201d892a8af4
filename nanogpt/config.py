"""What a run trains: network shape and hyperparameters. No torch.

Each field is an option (option.py). Constructing a config checks every field and raises one
`InvalidConfig` that names all that are wrong.

    TrainConfig(n_layer=4, dropout=0.0)
    TrainConfig.from_mapping({**load_preset("train_shakespeare_char").config, "max_iters": 2000})
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from nanogpt.option import (
    LARGEST_INT64,
    InvalidConfig,
    Violation,
    option,
    range_violations,
    unknown_key,
)

ARCHITECTURES = ("gpt2", "modern")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of a network. Names and defaults follow nanoGPT's GPTConfig."""

    block_size: int = option(1024, "Longest sequence, in tokens.", ge=1, le=1 << 20)
    vocab_size: int = option(50304, "Rows of the token embedding.", ge=1, le=1 << 24)
    n_layer: int = option(12, "Transformer blocks.", ge=1, le=1024)
    n_head: int = option(12, "Attention heads in each block; a divisor of n_embd.", ge=1, le=1024)
    n_embd: int = option(768, "Width of the residual stream.", ge=1, le=1 << 16)
    dropout: float = option(0.0, "Probability of dropping an activation.", ge=0, lt=1)
    bias: bool = option(True, "Whether linear and normalization layers have biases; not modern.")
    arch: str = option("gpt2", "GPT-2, or the shape of nanochat.", choices=ARCHITECTURES)
    n_member: int = option(1, "Networks whose probabilities are averaged.", ge=1, le=64)

    def __post_init__(self) -> None:
        found = range_violations(self)
        if not found:
            found = shape_violations(self.arch, self.n_embd, self.n_head, self.bias)
        if found:
            raise InvalidConfig(found)

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def num_blocks(self) -> int:
        """Transformer blocks of all members."""
        return self.n_member * self.n_layer

    @property
    def is_modern(self) -> bool:
        """Whether positions are rotations and the head is a matrix of its own; see model.py."""
        return self.arch == "modern"


def shape_violations(arch: str, n_embd: int, n_head: int, bias: bool) -> list[Violation]:
    """What is wrong with values that are right each by itself."""
    found = []
    if n_embd % n_head:
        problem = f"must divide n_embd; {n_embd} is not a multiple of {n_head}"
        found.append(Violation("n_head", problem))
    elif arch == "modern" and n_embd // n_head % 2:
        problem = f"must leave an even n_embd / n_head with arch modern, got {n_embd} / {n_head}"
        found.append(Violation("n_head", problem))
    if arch == "modern" and bias:
        found.append(Violation("bias", "must be false with arch modern, which has none"))
    return found


MAX_SAMPLE_PROMPTS = 16
MAX_NAME_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Hyperparameters of a run: nanoGPT's keys, with the defaults of its Shakespeare preset."""

    eval_interval: int = option(250, "Steps between evaluations.", ge=1)
    log_interval: int = option(10, "Steps between step events.", ge=1)
    eval_iters: int = option(200, "Batches of each split in an evaluation.", ge=1)
    eval_only: bool = option(False, "Evaluate once and end.")
    always_save_checkpoint: bool = option(
        False, "Write a checkpoint at each evaluation, improved or not."
    )
    init_from: str = option("scratch", "Where weights start: scratch, or the name of a model.")
    gradient_accumulation_steps: int = option(
        1, "Micro-batches whose gradients are summed in each step.", ge=1
    )
    batch_size: int = option(64, "Sequences in each micro-batch.", ge=1)
    block_size: int = option(256, "Tokens in each sequence.", ge=1, le=1 << 20)
    n_layer: int = option(6, "Transformer blocks.", ge=1, le=1024)
    n_head: int = option(6, "Attention heads in each block; a divisor of n_embd.", ge=1, le=1024)
    n_embd: int = option(384, "Width of the residual stream.", ge=1, le=1 << 16)
    dropout: float = option(0.2, "Probability of dropping an activation.", ge=0, lt=1)
    bias: bool = option(False, "Whether linear and normalization layers have biases; not modern.")
    arch: str = option(
        "gpt2",
        "GPT-2, or modern: rotary positions, RMSNorm, ReLU squared, an untied head.",
        choices=ARCHITECTURES,
    )
    n_member: int = option(
        1, "Networks that learn side by side and answer with their mean probability.", ge=1, le=64
    )
    learning_rate: float = option(1e-3, "Peak learning rate.", gt=0, le=1e3)
    max_iters: int = option(
        5000, "Steps, unless something else ends the run before.", ge=1, le=LARGEST_INT64
    )
    weight_decay: float = option(0.1, "Decoupled decay of matrices and embeddings.", ge=0, le=1e3)
    beta1: float = option(0.9, "AdamW's decay of the gradient's mean.", ge=0, lt=1)
    beta2: float = option(0.99, "AdamW's decay of the gradient's square.", ge=0, lt=1)
    grad_clip: float = option(1.0, "Largest global norm of the gradient; 0 is off.", ge=0)
    decay_lr: bool = option(True, "Warm up and decay the learning rate; else it is constant.")
    warmup_iters: int = option(100, "Steps of linear warm-up.", ge=0, le=LARGEST_INT64)
    lr_decay_iters: int = option(
        5000, "Step at which the learning rate reaches min_lr.", ge=1, le=LARGEST_INT64
    )
    min_lr: float = option(1e-4, "Learning rate after the decay.", ge=0)
    device: str = option("auto", "Where to train.", choices=("auto", "cpu", "cuda", "mps"))
    dtype: str = option(
        "auto", "Arithmetic type.", choices=("auto", "float32", "bfloat16", "float16")
    )
    compile: str = option("auto", "Whether to compile the model.", choices=("auto", "on", "off"))
    seed: int = option(1337, "Seeds weights, batches, dropout, evaluation.", ge=0, lt=1 << 64)
    keep_checkpoints: int = option(2, "Newest checkpoints kept beside the best one.", ge=1)
    checkpoint_interval: int = option(
        0, "Steps between checkpoints whatever the loss; 0 writes at evaluations only.", ge=0
    )
    backend: str = option("auto", "Backend of the process group.", choices=("auto", "gloo", "nccl"))
    wandb_log: bool = option(False, "Copy metrics to Weights & Biases if it is installed.")
    wandb_project: str = option("owt", "Weights & Biases project.")
    wandb_run_name: str = option("gpt2", "Weights & Biases run name.")
    optimizer: str = option(
        "adamw",
        "AdamW, or Muon for the matrices of the blocks and AdamW for the rest.",
        choices=("adamw", "muon"),
    )
    muon_learning_rate: float = option(0.02, "Muon's peak learning rate.", gt=0, le=1e3)
    lr_schedule: str = option(
        "cosine",
        "Course of the learning rate after warm-up.",
        choices=("cosine", "linear", "constant", "wsd"),
    )
    wsd_decay_fraction: float = option(
        0.2, "Share of lr_decay_iters in which wsd falls.", gt=0, le=1
    )
    zero_init_projections: bool = option(False, "Every block begins as the identity.")
    sinusoidal_positions: bool = option(False, "Position embeddings begin as sine waves.")
    early_stop_patience: int = option(
        0, "Evaluations without improvement that end the run; 0 is off.", ge=0
    )
    early_stop_min_delta: float = option(0.0, "Nats that count as an improvement.", ge=0)
    target_val_loss: float = option(0.0, "Validation loss that ends the run; 0 is off.", ge=0)
    max_tokens: int = option(
        0, "Training tokens that end the run; 0 is off.", ge=0, le=LARGEST_INT64
    )
    max_epochs: float = option(0.0, "Passes over the data that end the run; 0 is off.", ge=0)
    max_seconds: float = option(0.0, "Seconds, of all attempts, that end it; 0 is off.", ge=0)
    eval_whole_split: bool = option(False, "Evaluate on the whole validation split.")
    sample_prompts: tuple[str, ...] = option((), "Texts to continue at each evaluation.")
    sample_tokens: int = option(64, "Tokens of each such sample.", ge=1, le=1024)
    spike_threshold: float = option(
        10.0, "Standard deviations above the mean at which a step is left out; 0 is off.", ge=0
    )
    max_skips: int = option(5, "Steps left out in a row that make the run go back.", ge=1)
    max_rollbacks: int = option(3, "How often a run may go back before it fails.", ge=0)
    rollback_lr_factor: float = option(
        0.5, "Factor of the learning rate each time it goes back.", gt=0, le=1
    )
    tensorboard_log: bool = option(False, "Write TensorBoard files if tensorboardX is installed.")
    processes: int = option(
        1,
        "Processes that share each step; a divisor of batch_size or gradient_accumulation_steps.",
        ge=1,
        le=4096,
    )
    sharding: str = option(
        "ddp", "What several processes hold: the whole model, or a share.", choices=("ddp", "fsdp")
    )
    launcher: str = option(
        "local", "Where processes run: this machine, or Ray.", choices=("local", "ray")
    )

    def __post_init__(self) -> None:
        found = range_violations(self)
        wrong = {violation.field for violation in found}

        def are_right(*names: str) -> bool:
            return wrong.isdisjoint(names)

        if are_right("arch", "n_embd", "n_head", "bias"):
            found += shape_violations(self.arch, self.n_embd, self.n_head, self.bias)
        if self.arch == "modern" and self.sinusoidal_positions:
            problem = "must be false with arch modern, whose positions are rotations"
            found.append(Violation("sinusoidal_positions", problem))
        if (
            are_right("decay_lr", "lr_decay_iters", "warmup_iters")
            and self.decay_lr
            and self.lr_decay_iters <= self.warmup_iters
        ):
            problem = f"must be above warmup_iters ({self.warmup_iters}), got {self.lr_decay_iters}"
            found.append(Violation("lr_decay_iters", problem))
        if (
            are_right("decay_lr", "min_lr", "learning_rate")
            and self.decay_lr
            and self.min_lr > self.learning_rate
        ):
            allowed = f"[0, learning_rate] = [0, {self.learning_rate:g}]"
            found.append(Violation("min_lr", f"must be in {allowed}, got {self.min_lr:g}"))
        found += self._prompt_violations()
        found += [
            Violation(name, f"must have at most {MAX_NAME_CHARACTERS} characters, got {len(text)}")
            for name in ("wandb_project", "wandb_run_name")
            if are_right(name) and len(text := getattr(self, name)) > MAX_NAME_CHARACTERS
        ]
        if are_right("processes", "batch_size", "gradient_accumulation_steps"):
            found += self.share_violations(self.processes)
        if self.sharding == "fsdp":
            if self.dtype == "float16":
                found.append(Violation("dtype", "must not be float16 with sharding fsdp"))
            if self.optimizer == "muon":
                found.append(Violation("optimizer", "must not be muon with sharding fsdp"))
        if found:
            raise InvalidConfig(found)

    def share_violations(self, processes: int) -> list[Violation]:
        """What is wrong if that many processes share each step: all must get equally much."""
        if self.batch_size % processes == 0 or self.gradient_accumulation_steps % processes == 0:
            return []
        problem = (
            f"must divide batch_size ({self.batch_size}) or gradient_accumulation_steps "
            f"({self.gradient_accumulation_steps}), got {processes}"
        )
        return [Violation("processes", problem)]

    def _prompt_violations(self) -> list[Violation]:
        prompts = self.sample_prompts
        if not isinstance(prompts, tuple) or not all(isinstance(text, str) for text in prompts):
            return [Violation("sample_prompts", f"must be a list of texts, got {prompts!r}")]
        if len(prompts) > MAX_SAMPLE_PROMPTS:
            problem = f"must be at most {MAX_SAMPLE_PROMPTS} texts, got {len(prompts)}"
            return [Violation("sample_prompts", problem)]
        return [
            Violation(f"sample_prompts[{index}]", f"must have 1 to 256 characters, got {len(text)}")
            for index, text in enumerate(prompts)
            if not 1 <= len(text) <= 256
        ]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """A config of these values and defaults for the rest. Raises InvalidConfig."""
        names = [spec.name for spec in fields(cls)]
        unknown = [unknown_key(key, names) for key in values if key not in names]
        if unknown:
            raise InvalidConfig(unknown)
        prompts = values.get("sample_prompts", ())  # JSON knows lists only
        if isinstance(prompts, list):
            values = {**values, "sample_prompts": tuple(prompts)}
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """Every field by name; `from_mapping` of it is equal to this config."""
        return asdict(self)

    def model_config(self, vocab_size: int) -> ModelConfig:
        """The shape of the network that this run trains from scratch."""
        return ModelConfig(
            block_size=self.block_size,
            vocab_size=vocab_size,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_embd=self.n_embd,
            dropout=self.dropout,
            bias=self.bias,
            arch=self.arch,
            n_member=self.n_member,
        )

    @property
    def tokens_per_step(self) -> int:
        """Tokens that each optimizer update sees."""
        return self.gradient_accumulation_steps * self.batch_size * self.block_size

    @property
    def sequence_shares(self) -> int:
        """Parts that each micro-batch is cut into; 1 if processes share whole micro-batches."""
        return 1 if self.gradient_accumulation_steps % self.processes == 0 else self.processes
