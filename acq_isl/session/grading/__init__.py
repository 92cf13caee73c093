"""A run on a simulated specimen against what that specimen knows."""
