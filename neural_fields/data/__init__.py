"""Video, flow, masks and synthetic clips."""
