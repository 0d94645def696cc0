"""Holds in Redis: admission, checkpoints and endings, each one atomic script. ``port`` is what the rest of the house knows."""
