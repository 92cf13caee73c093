"""From a run to whoever watches it: newest first, may drop, never waits."""
