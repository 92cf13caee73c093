"""acq-isl: see fluorescence labels that were never stained, while acquiring."""
