"""Private: one folder per primitive, with its checks and dispatch (`op.py`) and its backends."""
