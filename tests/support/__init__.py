"""What tests share: tiny models, scenes and runs whose truth is known."""
