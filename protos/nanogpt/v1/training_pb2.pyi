import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from protos.nanogpt.v1 import inference_pb2 as _inference_pb2
from protos.nanogpt.v1 import models_pb2 as _models_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TrainRequest(_message.Message):
    __slots__ = ("model", "dataset", "config", "preset", "request_id", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    PRESET_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    dataset: str
    config: TrainConfig
    preset: str
    request_id: str
    priority: int
    def __init__(self, model: _Optional[str] = ..., dataset: _Optional[str] = ..., config: _Optional[_Union[TrainConfig, _Mapping]] = ..., preset: _Optional[str] = ..., request_id: _Optional[str] = ..., priority: _Optional[int] = ...) -> None: ...

class TrainConfig(_message.Message):
    __slots__ = ("eval_interval", "log_interval", "eval_iters", "eval_only", "always_save_checkpoint", "init_from", "gradient_accumulation_steps", "batch_size", "block_size", "n_layer", "n_head", "n_embd", "dropout", "bias", "arch", "n_member", "learning_rate", "max_iters", "weight_decay", "beta1", "beta2", "grad_clip", "decay_lr", "warmup_iters", "lr_decay_iters", "min_lr", "device", "dtype", "compile", "seed", "keep_checkpoints", "checkpoint_interval", "backend", "wandb_log", "wandb_project", "wandb_run_name", "optimizer", "muon_learning_rate", "lr_schedule", "wsd_decay_fraction", "zero_init_projections", "sinusoidal_positions", "early_stop_patience", "early_stop_min_delta", "target_val_loss", "max_tokens", "max_epochs", "max_seconds", "eval_whole_split", "sample_prompts", "sample_tokens", "spike_threshold", "max_skips", "max_rollbacks", "rollback_lr_factor", "tensorboard_log", "processes", "sharding", "launcher")
    EVAL_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    LOG_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    EVAL_ITERS_FIELD_NUMBER: _ClassVar[int]
    EVAL_ONLY_FIELD_NUMBER: _ClassVar[int]
    ALWAYS_SAVE_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    INIT_FROM_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_ACCUMULATION_STEPS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    N_LAYER_FIELD_NUMBER: _ClassVar[int]
    N_HEAD_FIELD_NUMBER: _ClassVar[int]
    N_EMBD_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    ARCH_FIELD_NUMBER: _ClassVar[int]
    N_MEMBER_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    MAX_ITERS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    GRAD_CLIP_FIELD_NUMBER: _ClassVar[int]
    DECAY_LR_FIELD_NUMBER: _ClassVar[int]
    WARMUP_ITERS_FIELD_NUMBER: _ClassVar[int]
    LR_DECAY_ITERS_FIELD_NUMBER: _ClassVar[int]
    MIN_LR_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    COMPILE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    KEEP_CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    WANDB_LOG_FIELD_NUMBER: _ClassVar[int]
    WANDB_PROJECT_FIELD_NUMBER: _ClassVar[int]
    WANDB_RUN_NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    MUON_LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    LR_SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    WSD_DECAY_FRACTION_FIELD_NUMBER: _ClassVar[int]
    ZERO_INIT_PROJECTIONS_FIELD_NUMBER: _ClassVar[int]
    SINUSOIDAL_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOP_PATIENCE_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOP_MIN_DELTA_FIELD_NUMBER: _ClassVar[int]
    TARGET_VAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    MAX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EVAL_WHOLE_SPLIT_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SPIKE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MAX_SKIPS_FIELD_NUMBER: _ClassVar[int]
    MAX_ROLLBACKS_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_LR_FACTOR_FIELD_NUMBER: _ClassVar[int]
    TENSORBOARD_LOG_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    SHARDING_FIELD_NUMBER: _ClassVar[int]
    LAUNCHER_FIELD_NUMBER: _ClassVar[int]
    eval_interval: int
    log_interval: int
    eval_iters: int
    eval_only: bool
    always_save_checkpoint: bool
    init_from: str
    gradient_accumulation_steps: int
    batch_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool
    arch: str
    n_member: int
    learning_rate: float
    max_iters: int
    weight_decay: float
    beta1: float
    beta2: float
    grad_clip: float
    decay_lr: bool
    warmup_iters: int
    lr_decay_iters: int
    min_lr: float
    device: str
    dtype: str
    compile: str
    seed: int
    keep_checkpoints: int
    checkpoint_interval: int
    backend: str
    wandb_log: bool
    wandb_project: str
    wandb_run_name: str
    optimizer: str
    muon_learning_rate: float
    lr_schedule: str
    wsd_decay_fraction: float
    zero_init_projections: bool
    sinusoidal_positions: bool
    early_stop_patience: int
    early_stop_min_delta: float
    target_val_loss: float
    max_tokens: int
    max_epochs: float
    max_seconds: float
    eval_whole_split: bool
    sample_prompts: _containers.RepeatedScalarFieldContainer[str]
    sample_tokens: int
    spike_threshold: float
    max_skips: int
    max_rollbacks: int
    rollback_lr_factor: float
    tensorboard_log: bool
    processes: int
    sharding: str
    launcher: str
    def __init__(self, eval_interval: _Optional[int] = ..., log_interval: _Optional[int] = ..., eval_iters: _Optional[int] = ..., eval_only: _Optional[bool] = ..., always_save_checkpoint: _Optional[bool] = ..., init_from: _Optional[str] = ..., gradient_accumulation_steps: _Optional[int] = ..., batch_size: _Optional[int] = ..., block_size: _Optional[int] = ..., n_layer: _Optional[int] = ..., n_head: _Optional[int] = ..., n_embd: _Optional[int] = ..., dropout: _Optional[float] = ..., bias: _Optional[bool] = ..., arch: _Optional[str] = ..., n_member: _Optional[int] = ..., learning_rate: _Optional[float] = ..., max_iters: _Optional[int] = ..., weight_decay: _Optional[float] = ..., beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., grad_clip: _Optional[float] = ..., decay_lr: _Optional[bool] = ..., warmup_iters: _Optional[int] = ..., lr_decay_iters: _Optional[int] = ..., min_lr: _Optional[float] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., compile: _Optional[str] = ..., seed: _Optional[int] = ..., keep_checkpoints: _Optional[int] = ..., checkpoint_interval: _Optional[int] = ..., backend: _Optional[str] = ..., wandb_log: _Optional[bool] = ..., wandb_project: _Optional[str] = ..., wandb_run_name: _Optional[str] = ..., optimizer: _Optional[str] = ..., muon_learning_rate: _Optional[float] = ..., lr_schedule: _Optional[str] = ..., wsd_decay_fraction: _Optional[float] = ..., zero_init_projections: _Optional[bool] = ..., sinusoidal_positions: _Optional[bool] = ..., early_stop_patience: _Optional[int] = ..., early_stop_min_delta: _Optional[float] = ..., target_val_loss: _Optional[float] = ..., max_tokens: _Optional[int] = ..., max_epochs: _Optional[float] = ..., max_seconds: _Optional[float] = ..., eval_whole_split: _Optional[bool] = ..., sample_prompts: _Optional[_Iterable[str]] = ..., sample_tokens: _Optional[int] = ..., spike_threshold: _Optional[float] = ..., max_skips: _Optional[int] = ..., max_rollbacks: _Optional[int] = ..., rollback_lr_factor: _Optional[float] = ..., tensorboard_log: _Optional[bool] = ..., processes: _Optional[int] = ..., sharding: _Optional[str] = ..., launcher: _Optional[str] = ...) -> None: ...

class TrainResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "model", "dataset", "config", "config_origin", "state", "reason", "error", "queue_position", "step", "run", "latest_step", "latest_evaluation", "best_val_loss", "remaining_seconds", "create_time", "start_time", "end_time", "attempts", "history", "priority")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Job.State]
        STATE_QUEUED: _ClassVar[Job.State]
        STATE_STARTING: _ClassVar[Job.State]
        STATE_RUNNING: _ClassVar[Job.State]
        STATE_PAUSING: _ClassVar[Job.State]
        STATE_PAUSED: _ClassVar[Job.State]
        STATE_RECOVERING: _ClassVar[Job.State]
        STATE_CANCELLING: _ClassVar[Job.State]
        STATE_CANCELLED: _ClassVar[Job.State]
        STATE_SUCCEEDED: _ClassVar[Job.State]
        STATE_FAILED: _ClassVar[Job.State]
    STATE_UNSPECIFIED: Job.State
    STATE_QUEUED: Job.State
    STATE_STARTING: Job.State
    STATE_RUNNING: Job.State
    STATE_PAUSING: Job.State
    STATE_PAUSED: Job.State
    STATE_RECOVERING: Job.State
    STATE_CANCELLING: Job.State
    STATE_CANCELLED: Job.State
    STATE_SUCCEEDED: Job.State
    STATE_FAILED: Job.State
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[Job.Reason]
        REASON_REQUESTED: _ClassVar[Job.Reason]
        REASON_SERVER_RESTART: _ClassVar[Job.Reason]
        REASON_CRASHED: _ClassVar[Job.Reason]
        REASON_CRASH_LOOP: _ClassVar[Job.Reason]
        REASON_DIVERGED: _ClassVar[Job.Reason]
        REASON_OUT_OF_MEMORY: _ClassVar[Job.Reason]
        REASON_BAD_DATASET: _ClassVar[Job.Reason]
        REASON_BAD_CONFIG: _ClassVar[Job.Reason]
        REASON_EARLY_STOPPED: _ClassVar[Job.Reason]
        REASON_LIMIT_REACHED: _ClassVar[Job.Reason]
    REASON_UNSPECIFIED: Job.Reason
    REASON_REQUESTED: Job.Reason
    REASON_SERVER_RESTART: Job.Reason
    REASON_CRASHED: Job.Reason
    REASON_CRASH_LOOP: Job.Reason
    REASON_DIVERGED: Job.Reason
    REASON_OUT_OF_MEMORY: Job.Reason
    REASON_BAD_DATASET: Job.Reason
    REASON_BAD_CONFIG: Job.Reason
    REASON_EARLY_STOPPED: Job.Reason
    REASON_LIMIT_REACHED: Job.Reason
    class ConfigOriginEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class Attempt(_message.Message):
        __slots__ = ("number", "start_time", "end_time", "exit_code", "ending", "first_step")
        NUMBER_FIELD_NUMBER: _ClassVar[int]
        START_TIME_FIELD_NUMBER: _ClassVar[int]
        END_TIME_FIELD_NUMBER: _ClassVar[int]
        EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
        ENDING_FIELD_NUMBER: _ClassVar[int]
        FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
        number: int
        start_time: _timestamp_pb2.Timestamp
        end_time: _timestamp_pb2.Timestamp
        exit_code: int
        ending: str
        first_step: int
        def __init__(self, number: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., exit_code: _Optional[int] = ..., ending: _Optional[str] = ..., first_step: _Optional[int] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    CONFIG_ORIGIN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    LATEST_STEP_FIELD_NUMBER: _ClassVar[int]
    LATEST_EVALUATION_FIELD_NUMBER: _ClassVar[int]
    BEST_VAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    REMAINING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    dataset: str
    config: TrainConfig
    config_origin: _containers.ScalarMap[str, str]
    state: Job.State
    reason: Job.Reason
    error: str
    queue_position: int
    step: int
    run: RunStarted
    latest_step: StepMetrics
    latest_evaluation: Evaluation
    best_val_loss: float
    remaining_seconds: float
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    attempts: _containers.RepeatedCompositeFieldContainer[Job.Attempt]
    history: _containers.RepeatedCompositeFieldContainer[StateChange]
    priority: int
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., dataset: _Optional[str] = ..., config: _Optional[_Union[TrainConfig, _Mapping]] = ..., config_origin: _Optional[_Mapping[str, str]] = ..., state: _Optional[_Union[Job.State, str]] = ..., reason: _Optional[_Union[Job.Reason, str]] = ..., error: _Optional[str] = ..., queue_position: _Optional[int] = ..., step: _Optional[int] = ..., run: _Optional[_Union[RunStarted, _Mapping]] = ..., latest_step: _Optional[_Union[StepMetrics, _Mapping]] = ..., latest_evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., best_val_loss: _Optional[float] = ..., remaining_seconds: _Optional[float] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., attempts: _Optional[_Iterable[_Union[Job.Attempt, _Mapping]]] = ..., history: _Optional[_Iterable[_Union[StateChange, _Mapping]]] = ..., priority: _Optional[int] = ...) -> None: ...

class StreamMetricsRequest(_message.Message):
    __slots__ = ("job_id", "server", "start_sequence", "max_behind")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    START_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    MAX_BEHIND_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    server: ServerSource
    start_sequence: int
    max_behind: int
    def __init__(self, job_id: _Optional[str] = ..., server: _Optional[_Union[ServerSource, _Mapping]] = ..., start_sequence: _Optional[int] = ..., max_behind: _Optional[int] = ...) -> None: ...

class ServerSource(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StreamMetricsResponse(_message.Message):
    __slots__ = ("sequence", "time", "started", "step", "evaluation", "checkpoint", "sample", "state_change", "heartbeat", "divergence", "skipped", "serving")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    STATE_CHANGE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    DIVERGENCE_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    time: _timestamp_pb2.Timestamp
    started: RunStarted
    step: StepMetrics
    evaluation: Evaluation
    checkpoint: Checkpoint
    sample: Sample
    state_change: StateChange
    heartbeat: Heartbeat
    divergence: Divergence
    skipped: Skipped
    serving: ServingFigures
    def __init__(self, sequence: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., started: _Optional[_Union[RunStarted, _Mapping]] = ..., step: _Optional[_Union[StepMetrics, _Mapping]] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., sample: _Optional[_Union[Sample, _Mapping]] = ..., state_change: _Optional[_Union[StateChange, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., divergence: _Optional[_Union[Divergence, _Mapping]] = ..., skipped: _Optional[_Union[Skipped, _Mapping]] = ..., serving: _Optional[_Union[ServingFigures, _Mapping]] = ...) -> None: ...

class RunStarted(_message.Message):
    __slots__ = ("model_config", "parameter_count", "tokenizer", "train_tokens", "val_tokens", "tokens_per_step", "device", "device_name", "dtype", "peak_flops", "peak_source", "max_iters", "processes", "estimated_memory_bytes")
    MODEL_CONFIG_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    TRAIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_STEP_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    PEAK_FLOPS_FIELD_NUMBER: _ClassVar[int]
    PEAK_SOURCE_FIELD_NUMBER: _ClassVar[int]
    MAX_ITERS_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    model_config: _models_pb2.ModelConfig
    parameter_count: int
    tokenizer: str
    train_tokens: int
    val_tokens: int
    tokens_per_step: int
    device: str
    device_name: str
    dtype: str
    peak_flops: float
    peak_source: str
    max_iters: int
    processes: int
    estimated_memory_bytes: int
    def __init__(self, model_config: _Optional[_Union[_models_pb2.ModelConfig, _Mapping]] = ..., parameter_count: _Optional[int] = ..., tokenizer: _Optional[str] = ..., train_tokens: _Optional[int] = ..., val_tokens: _Optional[int] = ..., tokens_per_step: _Optional[int] = ..., device: _Optional[str] = ..., device_name: _Optional[str] = ..., dtype: _Optional[str] = ..., peak_flops: _Optional[float] = ..., peak_source: _Optional[str] = ..., max_iters: _Optional[int] = ..., processes: _Optional[int] = ..., estimated_memory_bytes: _Optional[int] = ...) -> None: ...

class StepMetrics(_message.Message):
    __slots__ = ("step", "loss", "learning_rate", "grad_norm", "clipped", "step_seconds", "tokens_per_second", "mfu", "tokens", "memory_bytes", "clipped_steps")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    CLIPPED_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    MFU_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CLIPPED_STEPS_FIELD_NUMBER: _ClassVar[int]
    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    clipped: bool
    step_seconds: float
    tokens_per_second: float
    mfu: float
    tokens: int
    memory_bytes: int
    clipped_steps: int
    def __init__(self, step: _Optional[int] = ..., loss: _Optional[float] = ..., learning_rate: _Optional[float] = ..., grad_norm: _Optional[float] = ..., clipped: _Optional[bool] = ..., step_seconds: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., mfu: _Optional[float] = ..., tokens: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., clipped_steps: _Optional[int] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("step", "train_loss", "val_loss", "is_best", "seconds", "val_perplexity", "val_bits_per_byte")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TRAIN_LOSS_FIELD_NUMBER: _ClassVar[int]
    VAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    IS_BEST_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    VAL_PERPLEXITY_FIELD_NUMBER: _ClassVar[int]
    VAL_BITS_PER_BYTE_FIELD_NUMBER: _ClassVar[int]
    step: int
    train_loss: float
    val_loss: float
    is_best: bool
    seconds: float
    val_perplexity: float
    val_bits_per_byte: float
    def __init__(self, step: _Optional[int] = ..., train_loss: _Optional[float] = ..., val_loss: _Optional[float] = ..., is_best: _Optional[bool] = ..., seconds: _Optional[float] = ..., val_perplexity: _Optional[float] = ..., val_bits_per_byte: _Optional[float] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("step", "val_loss", "is_best", "size_bytes", "create_time", "is_pinned", "is_loaded")
    STEP_FIELD_NUMBER: _ClassVar[int]
    VAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    IS_BEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    IS_PINNED_FIELD_NUMBER: _ClassVar[int]
    IS_LOADED_FIELD_NUMBER: _ClassVar[int]
    step: int
    val_loss: float
    is_best: bool
    size_bytes: int
    create_time: _timestamp_pb2.Timestamp
    is_pinned: bool
    is_loaded: bool
    def __init__(self, step: _Optional[int] = ..., val_loss: _Optional[float] = ..., is_best: _Optional[bool] = ..., size_bytes: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., is_pinned: _Optional[bool] = ..., is_loaded: _Optional[bool] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("step", "prompt", "text", "index")
    STEP_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    step: int
    prompt: str
    text: str
    index: int
    def __init__(self, step: _Optional[int] = ..., prompt: _Optional[str] = ..., text: _Optional[str] = ..., index: _Optional[int] = ...) -> None: ...

class Divergence(_message.Message):
    __slots__ = ("step", "action", "loss", "grad_norm", "rolled_back_to_step", "learning_rate_factor")
    class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACTION_UNSPECIFIED: _ClassVar[Divergence.Action]
        ACTION_SKIPPED: _ClassVar[Divergence.Action]
        ACTION_ROLLED_BACK: _ClassVar[Divergence.Action]
    ACTION_UNSPECIFIED: Divergence.Action
    ACTION_SKIPPED: Divergence.Action
    ACTION_ROLLED_BACK: Divergence.Action
    STEP_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    ROLLED_BACK_TO_STEP_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FACTOR_FIELD_NUMBER: _ClassVar[int]
    step: int
    action: Divergence.Action
    loss: float
    grad_norm: float
    rolled_back_to_step: int
    learning_rate_factor: float
    def __init__(self, step: _Optional[int] = ..., action: _Optional[_Union[Divergence.Action, str]] = ..., loss: _Optional[float] = ..., grad_norm: _Optional[float] = ..., rolled_back_to_step: _Optional[int] = ..., learning_rate_factor: _Optional[float] = ...) -> None: ...

class Skipped(_message.Message):
    __slots__ = ("first_sequence", "last_sequence")
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    first_sequence: int
    last_sequence: int
    def __init__(self, first_sequence: _Optional[int] = ..., last_sequence: _Optional[int] = ...) -> None: ...

class ServingFigures(_message.Message):
    __slots__ = ("models", "skipped")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelFigures]
    skipped: int
    def __init__(self, models: _Optional[_Iterable[_Union[ModelFigures, _Mapping]]] = ..., skipped: _Optional[int] = ...) -> None: ...

class ModelFigures(_message.Message):
    __slots__ = ("model", "weight_version", "running", "waiting", "prompt_tokens_per_second", "generation_tokens_per_second", "time_to_first_token_seconds", "inter_token_latency_seconds", "kv_cache_usage_ratio", "prefix_cache_hit_ratio", "memory_bytes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    GENERATION_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_FIRST_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    INTER_TOKEN_LATENCY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_USAGE_RATIO_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHE_HIT_RATIO_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    model: str
    weight_version: int
    running: int
    waiting: int
    prompt_tokens_per_second: float
    generation_tokens_per_second: float
    time_to_first_token_seconds: _inference_pb2.Percentiles
    inter_token_latency_seconds: _inference_pb2.Percentiles
    kv_cache_usage_ratio: float
    prefix_cache_hit_ratio: float
    memory_bytes: int
    def __init__(self, model: _Optional[str] = ..., weight_version: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., prompt_tokens_per_second: _Optional[float] = ..., generation_tokens_per_second: _Optional[float] = ..., time_to_first_token_seconds: _Optional[_Union[_inference_pb2.Percentiles, _Mapping]] = ..., inter_token_latency_seconds: _Optional[_Union[_inference_pb2.Percentiles, _Mapping]] = ..., kv_cache_usage_ratio: _Optional[float] = ..., prefix_cache_hit_ratio: _Optional[float] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class StateChange(_message.Message):
    __slots__ = ("state", "reason", "error", "time")
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    state: Job.State
    reason: Job.Reason
    error: str
    time: _timestamp_pb2.Timestamp
    def __init__(self, state: _Optional[_Union[Job.State, str]] = ..., reason: _Optional[_Union[Job.Reason, str]] = ..., error: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class CancelJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class PauseJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class PauseJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ResumeJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ResumeJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ListCheckpointsRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class ListCheckpointsResponse(_message.Message):
    __slots__ = ("checkpoints",)
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    checkpoints: _containers.RepeatedCompositeFieldContainer[Checkpoint]
    def __init__(self, checkpoints: _Optional[_Iterable[_Union[Checkpoint, _Mapping]]] = ...) -> None: ...

class PinCheckpointRequest(_message.Message):
    __slots__ = ("job_id", "step", "pinned")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    step: int
    pinned: bool
    def __init__(self, job_id: _Optional[str] = ..., step: _Optional[int] = ..., pinned: _Optional[bool] = ...) -> None: ...

class PinCheckpointResponse(_message.Message):
    __slots__ = ("checkpoint",)
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: Checkpoint
    def __init__(self, checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ...) -> None: ...

class DeleteCheckpointRequest(_message.Message):
    __slots__ = ("job_id", "step")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    step: int
    def __init__(self, job_id: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class DeleteCheckpointResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StreamLogsRequest(_message.Message):
    __slots__ = ("job_id", "follow", "offset")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    follow: bool
    offset: int
    def __init__(self, job_id: _Optional[str] = ..., follow: _Optional[bool] = ..., offset: _Optional[int] = ...) -> None: ...

class StreamLogsResponse(_message.Message):
    __slots__ = ("text", "next_offset")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    text: str
    next_offset: int
    def __init__(self, text: _Optional[str] = ..., next_offset: _Optional[int] = ...) -> None: ...
