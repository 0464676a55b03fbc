"""An OpenAI-compatible server: the local decoder behind HTTP routes, or vLLM's own server."""
