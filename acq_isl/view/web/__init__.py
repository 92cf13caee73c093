"""The run on a web page, served by a process of its own."""
