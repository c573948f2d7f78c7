"""Features → fewer features: pure functions, each with its num_tokens."""
