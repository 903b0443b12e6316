"""Theme 2: retrieval by DeepIndex and multi-DeepIndex."""
