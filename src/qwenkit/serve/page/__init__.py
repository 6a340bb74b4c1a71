"""The chat page: built files, and how they are sent."""
