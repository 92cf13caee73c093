"""Slices to the engine and predictions back: both ends of the wire, and where stacks wait meanwhile.

`client.EngineClient` is the acquiring end, `server.EngineServer` the predicting one, `process` starts the
latter as a child, `ring` is the memory both share on one host, `spool` keeps what no engine predicted.
"""
