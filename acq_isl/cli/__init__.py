"""The command line: one file a topic; nothing else configures logging."""
