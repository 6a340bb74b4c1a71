"""From what the engine says to one response, whole or as a stream, whatever the endpoint's words."""
