"""vLLM behind one actor: the only folder that imports vllm."""
