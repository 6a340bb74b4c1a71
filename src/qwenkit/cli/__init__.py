"""The command line: one file a command, thin; what is heavy is imported inside the command."""
