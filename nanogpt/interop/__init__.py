"""Weights of other systems, in and out. Weights only: no code in a file is ever run.

hugging_face        folders of transformers' GPT2LMHeadModel and NanoChatForCausalLM
nanogpt_checkpoint  nanoGPT's ckpt.pt
gguf                llama.cpp's single file, out only
gpt2_vocabulary     GPT-2's tokens and merges as text, which the others' tokenizers read
gpt2_layout         GPT2LMHeadModel's names and settings for our weights
nanochat_layout     NanoChatForCausalLM's
settings            values of another system's configuration, checked
weights             names and shapes that a network's weights must have
"""
