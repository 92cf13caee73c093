"""A card proves itself: `acq-isl bench --gpu`, step by step, into one file."""
