"""Who is asking: accounts, keys and their scopes. ``model`` and ``scopes`` are pure; ``directory`` looks a key up."""
