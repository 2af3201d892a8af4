"""Speed, measured beside the alternatives in one run. `python -m benchmarks` runs everything."""
