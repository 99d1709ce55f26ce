"""Objects found by networks: SAM 2, words to boxes, mattes. Weights come from a folder or a hub name."""
