"""Members that are a GGUF file, run by llama.cpp on the CPU."""
