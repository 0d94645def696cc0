"""The commands, one file per verb; no logic."""
