"""What Benchmark measures: load on an engine, and training steps in a process of their own."""
