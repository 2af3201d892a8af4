"""Hyperparameters as keys of the command line: nanoGPT's names, the server's defaults.

Names and kinds are the fields of TrainConfig in protos/nanogpt/v1/training.proto, kept equal by
tests/test_cli_parsing.py, so that reading a command line needs no protobuf. Values travel only if
they were given: defaults and presets are filled in by the server.
"""

from client.keys import BOOL, FLOAT, INT32, INT64, SWITCH, TEXT, UINT64, Key

TRAIN_KEYS = (
    Key("eval_interval", INT32, 250, "Steps between evaluations."),
    Key("log_interval", INT32, 10, "Steps between step events."),
    Key("eval_iters", INT32, 200, "Batches of each split in an evaluation."),
    Key("eval_only", BOOL, False, "Evaluate once and end."),
    Key("always_save_checkpoint", BOOL, False, "Write a checkpoint at each evaluation."),
    Key("init_from", TEXT, "scratch", "Where weights start: scratch, or the name of a model."),
    Key("gradient_accumulation_steps", INT32, 1, "Micro-batches in each step."),
    Key("batch_size", INT32, 64, "Sequences in each micro-batch."),
    Key("block_size", INT32, 256, "Tokens in each sequence."),
    Key("n_layer", INT32, 6, "Transformer blocks."),
    Key("n_head", INT32, 6, "Attention heads in each block; a divisor of n_embd."),
    Key("n_embd", INT32, 384, "Width of the residual stream."),
    Key("dropout", FLOAT, 0.2, "Probability of dropping an activation, in [0, 1)."),
    Key("bias", BOOL, False, "Whether linear and normalization layers have biases."),
    Key("learning_rate", FLOAT, 1e-3, "Peak learning rate."),
    Key("max_iters", INT64, 5000, "Optimizer updates; the run does exactly this many."),
    Key("weight_decay", FLOAT, 0.1, "Decoupled decay of matrices and embeddings."),
    Key("beta1", FLOAT, 0.9, "AdamW's decay of the gradient's mean, in [0, 1)."),
    Key("beta2", FLOAT, 0.99, "AdamW's decay of the gradient's square, in [0, 1)."),
    Key("grad_clip", FLOAT, 1.0, "Largest global norm of the gradient; 0 is off."),
    Key("decay_lr", BOOL, True, "Warm up and decay the learning rate; else it is constant."),
    Key("warmup_iters", INT64, 100, "Steps of linear warm-up."),
    Key("lr_decay_iters", INT64, 5000, "Step at which the learning rate reaches min_lr."),
    Key("min_lr", FLOAT, 1e-4, "Learning rate after the decay."),
    Key("device", TEXT, "auto", "Where to train: auto, cpu, cuda or mps."),
    Key("dtype", TEXT, "auto", "Arithmetic: auto, float32, bfloat16 or float16."),
    Key("compile", SWITCH, "auto", "Whether to compile the model; true and false also do."),
    Key("seed", UINT64, 1337, "Seeds weights, batches, dropout and evaluation."),
    Key("keep_checkpoints", INT32, 2, "Newest checkpoints kept beside the best one."),
    Key("checkpoint_interval", INT32, 0, "Steps between checkpoints; 0: at evaluations only."),
    Key("backend", TEXT, "auto", "Backend of the process group: auto, gloo or nccl."),
    Key("wandb_log", BOOL, False, "Copy metrics to Weights & Biases if it is installed."),
    Key("wandb_project", TEXT, "owt", "Weights & Biases project."),
    Key("wandb_run_name", TEXT, "gpt2", "Weights & Biases run name."),
)
