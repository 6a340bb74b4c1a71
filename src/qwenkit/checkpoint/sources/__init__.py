"""Where models come from: local names, the demo model, hubs. Brings files; does not open them."""
