"""A pool of inference servers that many microscopes share, by the Open Inference Protocol."""
