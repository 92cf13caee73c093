"""The network as published, its TensorFlow checkpoint, and its dense forms."""
