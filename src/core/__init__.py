"""Values that can move a bit of an output: arrays, manifest, metrics, intervals, the ONNX model. No torch."""
