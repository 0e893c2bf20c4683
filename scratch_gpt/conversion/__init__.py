"""Load and export models: folders and the Hub, GPT-2, nanoGPT, the book, ONNX, GGUF."""
