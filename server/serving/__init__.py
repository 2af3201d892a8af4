"""From the event loop to an engine and back: a thread, its bounded queue and its streams."""
