"""A simulator of vLLM: an independent witness that imports nothing of ours. ``DESIGN.md`` beside this file is its manual."""
