"""Who may ask, and for how much: keys, rates, limits, connections, certificates."""
