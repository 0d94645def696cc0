"""Counting tokens by ourselves. ``counter`` is the pure port; everything else builds counters from vocabulary files."""
