"""Models in and out: loading, GPT-2, nanoGPT, the book, ONNX, GGUF."""
