"""Timings and memory of the losses next to what one would run instead; `lgf bench` and `benchmarks/` are its users."""
