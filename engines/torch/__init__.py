"""PyTorch on a GPU: for cards that TensorRT is not installed for."""
