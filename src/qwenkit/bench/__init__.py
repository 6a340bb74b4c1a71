"""Measuring: speed, memory and the share of what the machine can do, ours and other engines' side by side.

Every engine runs in a process of its own behind the same small protocol, ours included, so that memory is
that of a fresh process and a crash ends a row of the table and nothing more. Does not know the terminal.
"""
