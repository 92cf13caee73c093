"""The run in a napari window, in a process of its own."""
