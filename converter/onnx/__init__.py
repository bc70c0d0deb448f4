"""The ONNX spelling: graphs, data files, configuration, one directory."""
