"""The API server: an HTTP process without torch, and the engine in a process of its own beside it."""
