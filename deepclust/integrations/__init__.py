"""Other libraries on these kernels, each by one line; nothing of theirs is imported before it."""
