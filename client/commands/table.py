"""Every command: its name, arguments, keys and the function that runs it. Help is made of this.

Imports nothing heavy: a command's module is loaded when the command runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from client.commands.train_keys import TRAIN_KEYS
from client.keys import (
    ADDRESS,
    BOOL,
    FLOAT,
    INT32,
    INT64,
    INTS,
    SWITCH,
    TEXT,
    UINT64,
    Key,
    choice,
)

if TYPE_CHECKING:
    from client.arguments import Options
    from client.exit_code import ExitCode


@dataclass(frozen=True, slots=True)
class Argument:
    """A word of the command line that has no `--`."""

    name: str
    meaning: str
    required: bool = True


@dataclass(frozen=True, slots=True)
class Command:
    """One command; `runs` is `module:function` below client.commands."""

    name: str
    summary: str
    runs: str
    arguments: tuple[Argument, ...] = ()
    keys: tuple[Key, ...] = ()
    examples: tuple[str, ...] = ()

    def load(self) -> "Callable[[Options], ExitCode]":
        """The function that runs the command."""
        module, _, function = self.runs.partition(":")
        run: Callable[[Options], ExitCode] = getattr(
            import_module(f"client.commands.{module}"), function
        )
        return run


SERVER = Key("server", ADDRESS, "127.0.0.1:50051", "Address of the server.")
JSON = Key("json", BOOL, False, "Print one JSON object a line.")
CONFIG = Key("config", TEXT, None, "JSON file with any of these keys.")
CALL_KEYS = (SERVER, JSON, CONFIG)

REFERENCE = "NAME, NAME@STEP, job:ID or job:ID@STEP"

MODEL = Key("model", TEXT, None, f"{REFERENCE}; the newest if empty.", alias="out_dir")

PREPARE = Command(
    "prepare",
    "Makes a dataset of texts, or one of those that ship with the server.",
    "prepare:prepare",
    (
        Argument(
            "WHAT",
            "textfile, folder, jsonl, parquet, openwebtext, "
            "python_reference, shakespeare_char or shakespeare",
            False,
        ),
        Argument("PATH", "the file or folder, for the first five", False),
    ),
    (
        Key("output", TEXT, None, "Name of the dataset; made of the file's name if empty."),
        Key("tokenizer", choice("char", "gpt2"), "char", "One token a character, or GPT-2's."),
        Key("val_ratio", FLOAT, 0.1, "Fraction kept for validation, in (0, 0.5]."),
        Key("encoding", TEXT, None, "utf-8 or cp1252; found out if empty."),
        Key("text_field", TEXT, None, "JSON field or Parquet column with the text; text if empty."),
        Key("max_documents", INT64, None, "Documents to take; all if empty.", alias="max_docs"),
        Key("file", TEXT, None, "Local copy of the text of a dataset that ships."),
        *CALL_KEYS,
    ),
    (
        "prepare textfile alice.txt --tokenizer=char",
        "prepare python_reference",
        "prepare folder books --tokenizer=gpt2",
        "prepare jsonl web.jsonl --text_field=body --tokenizer=gpt2",
    ),
)

TRAIN = Command(
    "train",
    "Queues a training job and follows it. Ctrl-C stops following; the job goes on.",
    "training:train",
    (),
    (
        Key("dataset", TEXT, None, "Dataset to train on; needed unless the preset names one."),
        Key("model", TEXT, None, "Name of the new model; picked if empty.", alias="out_dir"),
        Key("preset", TEXT, None, "Hyperparameters to start from, such as train_gpt2."),
        *TRAIN_KEYS,
        Key("priority", INT32, 0, "Which job goes first: the lowest, in [-100, 100]."),
        Key("request_id", TEXT, None, "Makes it safe to send the command twice."),
        Key("detach", BOOL, False, "Queue the job and do not follow it."),
        *CALL_KEYS,
    ),
    (
        "train --dataset=python_reference --max_iters=2000",
        "train --preset=train_shakespeare_char --model=bard --compile=false",
    ),
)

WATCH = Command(
    "watch",
    "Follows a job from its first event, or from a later one, until it ends.",
    "training:watch",
    (Argument("JOB", "id of the job; needed without --serving", False),),
    (
        Key("start_sequence", INT64, 1, "Number of the first event to show."),
        Key("max_behind", INT32, None, "Leave out step events when this many are waiting."),
        Key("serving", BOOL, False, "Show how the server's models are doing, once a second."),
        *CALL_KEYS,
    ),
    ("watch 0123", "watch --serving"),
)

SAMPLE = Command(
    "sample",
    "Continues a text, printing tokens as they arrive.",
    "sample:sample",
    (),
    (
        MODEL,
        Key("start", TEXT, "\n", "Text to continue, or FILE:PATH for the text of a file."),
        Key("num_samples", INT32, 1, "Independent continuations."),
        Key("max_new_tokens", INT32, 500, "Largest number of tokens in each."),
        Key("temperature", FLOAT, 0.8, "Softmax temperature, in [0, 2]; 0 is greedy."),
        Key("top_k", INT32, 200, "Sample from the k likeliest tokens only."),
        Key("top_p", FLOAT, None, "Sample from the smallest likeliest set with this total."),
        Key("min_p", FLOAT, None, "Drop tokens less likely than this share of the likeliest."),
        Key("seed", UINT64, None, "Seeds the draws; random if empty."),
        Key("stop", TEXT, None, "Stop when this text appears."),
        Key("priority", INT32, 0, "Who goes first while several wait: the lowest number."),
        Key("use_prefix_cache", BOOL, True, "Do not compute again what earlier prompts did."),
        Key("max_draft_tokens", INT32, 0, "Tokens to guess ahead, for repetitive text."),
        Key("top_logprobs", INT32, None, "With --json: likeliest tokens in place of each."),
        Key("prompt_logprobs", INT32, None, "With --json: the same for the prompt's tokens."),
        Key("echo", BOOL, False, "With --json: return the prompt and its tokens."),
        *CALL_KEYS,
    ),
    ('sample --start="To be" --max_new_tokens=100', "sample --start=FILE:prompt.txt --top_p=0.9"),
)

SCORE = Command(
    "score",
    "Says how likely a model finds a text.",
    "score:score",
    (Argument("TEXT", "to score, or FILE:PATH for the text of a file"),),
    (
        MODEL,
        Key("top_logprobs", INT32, None, "With --json: likeliest tokens in place of each."),
        *CALL_KEYS,
    ),
    ('score "To be, or not to be"', "score FILE:page.txt --model=bard"),
)

INFERENCE_BENCH_KEYS = (
    MODEL,
    Key("concurrency", INTS, (1, 8), "Numbers of concurrent requests to measure."),
    Key("prompt_tokens", INT32, 16, "Random tokens in each prompt."),
    Key("completion_tokens", INT32, 64, "Tokens sampled by each request."),
    Key("requests", INT32, None, "Requests in each window; 4 times the concurrency if empty."),
    Key("max_windows", INT32, 1, "Most windows; more than 2 measure until the last 3 agree."),
    Key(
        "time_to_first_token_objective_seconds",
        FLOAT,
        None,
        "Goodput counts requests whose first token came within this.",
    ),
    Key(
        "time_per_output_token_objective_seconds",
        FLOAT,
        None,
        "Goodput counts requests whose later tokens took at most this on average.",
    ),
)
PICTURE = Key("output", TEXT, None, "Also draw the result, into this .svg file.")
TRAINING_BENCH_KEYS = (
    Key("batch_size", INT32, 12, "Sequences in each step."),
    Key("block_size", INT32, 1024, "Tokens in each sequence."),
    Key("n_layer", INT32, 12, "Transformer blocks."),
    Key("n_head", INT32, 12, "Attention heads in each block; a divisor of n_embd."),
    Key("n_embd", INT32, 768, "Width of the residual stream."),
    Key("dropout", FLOAT, 0.0, "Probability of dropping an activation, in [0, 1)."),
    Key("bias", BOOL, False, "Whether linear and normalization layers have biases."),
    Key("arch", TEXT, "gpt2", "Architecture of the network: gpt2 or modern."),
    Key("n_member", INT32, 1, "Networks that learn side by side."),
    Key("dataset", TEXT, None, "Dataset to read batches from; random tokens if empty."),
    Key("real_data", BOOL, True, "false takes random tokens even if a dataset is named."),
    Key("device", TEXT, "auto", "The device that the server uses: only auto."),
    Key("dtype", TEXT, "auto", "Arithmetic: auto, float32, bfloat16 or float16."),
    Key("compile", SWITCH, "off", "Whether to compile the model; true and false also do."),
    Key("warmup_steps", INT32, 10, "Steps that are run and not counted."),
    Key("steps", INT32, 20, "Steps that are counted."),
)
BENCH = Command(
    "bench",
    "Measures how fast a model generates, or how long a training step takes.",
    "bench:bench",
    (),
    (
        Key("mode", choice("inference", "training"), "inference", "What to measure."),
        *INFERENCE_BENCH_KEYS,
        PICTURE,
        *TRAINING_BENCH_KEYS,
        Key("seed", UINT64, 1337, "Seeds prompts, weights and batches."),
        *CALL_KEYS,
    ),
    (
        "bench --concurrency=1,8,32 --max_windows=10 --output=speed.svg",
        "bench --mode=training --n_layer=6 --n_embd=384 --n_head=6",
    ),
)

JOB_ID = Argument("JOB", "id of the job")
STEP = Argument("STEP", "of the checkpoint")
MODEL_NAME = Argument("MODEL", REFERENCE)

LOGS = Command(
    "logs",
    "Prints what a job's processes printed, over all its starts.",
    "logs:logs",
    (JOB_ID,),
    (
        Key("follow", BOOL, False, "Go on with new output until the job ends."),
        Key("offset", INT64, 0, "First byte; negative counts from the end."),
        *CALL_KEYS,
    ),
    ("logs 0123 --follow", "logs 0123 --offset=-2000"),
)
CHECKPOINTS = (
    Command(
        "checkpoints",
        "Lists a job's checkpoints, newest first.",
        "checkpoints:checkpoints",
        (JOB_ID,),
        CALL_KEYS,
    ),
    Command(
        "pin",
        "Keeps a checkpoint until it is unpinned.",
        "checkpoints:pin",
        (JOB_ID, STEP),
        CALL_KEYS,
    ),
    Command("unpin", "Lets a checkpoint go again.", "checkpoints:unpin", (JOB_ID, STEP), CALL_KEYS),
    Command(
        "delete-checkpoint",
        "Deletes a checkpoint.",
        "checkpoints:delete_checkpoint",
        (JOB_ID, STEP),
        CALL_KEYS,
    ),
)

EXPORT = Command(
    "export",
    "Writes a model's files in another system's format.",
    "exchange:export",
    (MODEL_NAME,),
    (
        Key("format", choice("hugging_face", "nanogpt", "gguf"), "hugging_face", "Whose format."),
        Key("output", TEXT, None, "Folder for the files; the model's name if empty."),
        *CALL_KEYS,
    ),
    ("export bard --format=hugging_face --output=bard-hf", "export job:0123 --format=nanogpt"),
)
IMPORT = Command(
    "import",
    "Makes a model of files that lie below imports/ in the server's data folder.",
    "exchange:import_files",
    (Argument("NAME", "of the new model"),),
    (
        Key("source", TEXT, None, "Name of the folder below imports/; NAME if empty."),
        Key("format", choice("hugging_face", "nanogpt"), "hugging_face", "Whose format."),
        Key("dataset", TEXT, None, "Dataset with its characters; GPT-2's tokenizer if empty."),
        *CALL_KEYS,
    ),
    ("import gpt2 --source=gpt2", "import poet --format=nanogpt --dataset=shakespeare_char"),
)

COMMANDS = (
    PREPARE,
    TRAIN,
    WATCH,
    SAMPLE,
    SCORE,
    BENCH,
    Command("jobs", "Lists jobs, newest first.", "jobs:jobs", (), CALL_KEYS),
    Command(
        "job",
        "Shows one job: its settings and where they came from, its history, its starts.",
        "jobs:job",
        (JOB_ID,),
        CALL_KEYS,
    ),
    Command(
        "cancel",
        "Stops a job after its step, with a checkpoint.",
        "jobs:cancel",
        (JOB_ID,),
        CALL_KEYS,
    ),
    Command(
        "pause",
        "Frees the device after the job's step, with a checkpoint; the job keeps its place.",
        "jobs:pause",
        (JOB_ID,),
        CALL_KEYS,
    ),
    Command(
        "resume", "Puts a paused job back into the queue.", "jobs:resume", (JOB_ID,), CALL_KEYS
    ),
    LOGS,
    *CHECKPOINTS,
    Command("models", "Lists models, newest first.", "models:models", (), CALL_KEYS),
    Command(
        "load",
        "Loads a model and keeps it in memory.",
        "models:load",
        (MODEL_NAME,),
        (
            Key("precision", TEXT, None, "float32, bfloat16, int8 or int4; the server's if empty."),
            *CALL_KEYS,
        ),
        ("load bard", "load bard --precision=int8"),
    ),
    Command("unload", "Frees a model's memory.", "models:unload", (MODEL_NAME,), CALL_KEYS),
    EXPORT,
    IMPORT,
    Command("datasets", "Lists datasets, newest first.", "datasets:datasets", (), CALL_KEYS),
    Command(
        "dataset",
        "Shows one dataset and what was found in its text.",
        "datasets:dataset",
        (Argument("NAME", "of the dataset"),),
        CALL_KEYS,
    ),
    Command("version", "Prints the client's version.", "version:version"),
    Command("help", "Explains a command.", "help:help", (Argument("COMMAND", "which one", False),)),
)
BY_NAME = {command.name: command for command in COMMANDS}
