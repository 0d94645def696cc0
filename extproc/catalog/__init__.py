"""Who pays what for which model. ``model`` holds the pure values, ``load`` reads ``models.yaml`` (``dated``: what changes at a moment),
``watch`` keeps the last good one.
"""
