"""Who is asking: accounts, keys and their scopes. ``model``, ``scopes`` and ``terms`` are pure; ``directory`` looks a key up."""
