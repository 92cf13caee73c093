"""One run: put together, checked, carried out, summed up, graded."""
