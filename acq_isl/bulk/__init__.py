"""Stored stacks and whole plates are predicted offline: a field at one time is one idempotent chunk."""
