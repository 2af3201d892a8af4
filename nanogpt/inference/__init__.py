"""Continuous batching: many generations share one model, one step at a time.

request      what a caller asks for, and whether it can be had
sequence     one sample of a request: tokens, window, when it ends
scheduler    who computes what in the next step (no torch)
runner       what the engine asks of a network: one forward pass a step (no torch)
torch_runner the runner of PyTorch
ensemble_runner  one over those of several networks (no torch)
kv_cache     keys and values of every running sequence, and attention over them
sampler      logits to token ids (no torch)
logprobs     log-probabilities of chosen tokens (no torch)
output_text  token ids to certain text, stop strings (no torch)
events       what a step reports
engine       the loop: schedule, run, postprocess (no torch)
"""
