"""What a run keeps on disk beside the measured data: predictions and decisions."""
