"""Who pays what for which model. ``model`` holds the pure values, ``load`` reads ``models.yaml``, ``watch`` keeps the last good one."""
