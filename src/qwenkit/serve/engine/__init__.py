"""The engine in a process of its own: what is said to it, who keeps it running, and what comes back."""
