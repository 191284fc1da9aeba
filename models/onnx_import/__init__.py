"""Import of ONNX files made elsewhere: inspection, adaptation to image input, metadata, and a parity check."""
