"""Generation on a CPU by kernels of our own, in C++, compiled on the machine that runs them.

compiler     the sources to a shared library, kept in a folder
library      the functions of that library, typed
runner       a Runner over them

vectors.h    numbers side by side, and what differs between processors
weights.h    precisions: how weights are packed and multiplied
matrix.h     a linear layer
attention.h  keys, values, attention
pool.h       threads
gpt.cpp      the forward pass, and the functions that Python calls
"""
