"""Every file format of recorded images, read once for everybody."""
