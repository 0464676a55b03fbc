"""Stands in where no torchvision matches the CPU build of torch: vLLM's Qwen3.5 imports names of it, for images."""
