"""The vLLM implementation of the engine port: the only folder that imports vllm."""
