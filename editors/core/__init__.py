"""The base classes of editors, the run as editors read it, and the stack of edits."""
