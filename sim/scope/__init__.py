"""The simulated microscope: camera, stages, shutter, faults, behind the real core."""
