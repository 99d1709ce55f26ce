"""One diffusion editor a file."""
