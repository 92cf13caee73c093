"""From a run to whoever watches it: newest first, may drop, never waits."""

from acq_isl.view.feed.feed import Feed

__all__ = ["Feed"]
