"""TensorRT and TensorRT for RTX: plans, their cache, and the engine that runs them."""
