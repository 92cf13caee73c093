"""The command line: one file a topic."""

from acq_isl.cli.app import cli, main

__all__ = ["cli", "main"]
