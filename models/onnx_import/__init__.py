"""ONNX files made elsewhere: looked at, made to take images and describe themselves, checked against what they were."""
