"""Objects found by networks: SAM 2, words, the main thing, mattes. Weights come from a folder or a hub name."""
