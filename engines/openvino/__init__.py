"""OpenVINO: compiles the model for processors."""
