"""LLaMA in plain PyTorch: config → llama → loss → convert, generate."""
