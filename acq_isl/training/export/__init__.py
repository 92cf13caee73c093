"""From weights to model files: ONNX, its manifest, BioImage.IO."""
