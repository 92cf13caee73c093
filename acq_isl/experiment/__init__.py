"""The experiment file: what is written in it, what it plans, and what goes wrong on purpose."""
