"""Conversations with tools, read and told apart the same way by every endpoint that chats."""
