"""The library: GPT models, their training and their inference. It knows nothing of servers."""
