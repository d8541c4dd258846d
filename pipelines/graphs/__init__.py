"""Models as ONNX graphs: what they compute, their files, and whether onnxruntime agrees with torch."""
