"""From images on disk, or simulated, to samples that a network learns from."""
