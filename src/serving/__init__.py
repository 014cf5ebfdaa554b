"""The service: one BentoML service on ONNX Runtime, without torch and without training code."""
