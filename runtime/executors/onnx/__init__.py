"""ONNX Runtime on the graphs of a directory."""
