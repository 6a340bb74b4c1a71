"""What every request and every response has, whatever it asks for: bodies, events, log lines, numbers."""
