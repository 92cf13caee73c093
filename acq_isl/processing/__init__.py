"""Arrays in, arrays out: no file, socket, thread or clock."""
