"""Numbers in, decisions out: measurements, rankings, triggers and actions."""
