"""Continuous batching: many generations share one model, one step at a time.

sampling_params  how a text is sampled, and when it ends (no torch)
precision        how weights are held (no torch)
request          what a caller asks for, and whether it can be had
sequence         one sample of a request: tokens, window, when it ends
scheduler        who computes what in the next step (no torch)
waiting_queue    who gets the next free slot (no torch)
free_slots       slots nobody uses, and what their caches still hold (no torch)
prompt_lookup    guesses at the next tokens, from earlier text (no torch)
runner           what the engine asks of a network: one forward pass a step (no torch)
torch_runner     the runner of PyTorch
native           the runner of our own kernels in C++, for processors (no torch)
ensemble_runner  one over those of several networks (no torch)
kv_cache         keys and values of every running sequence, and attention over them
sampler          logits to token ids (no torch)
logprobs         log-probabilities of chosen tokens (no torch)
output_text      token ids to certain text, stop strings (no torch)
events           what a step reports
engine           the loop: schedule, run, postprocess (no torch)
"""
