"""ONNX and OpenVINO IR as weight files: graphs, whose tensors get their names by their places in them."""
