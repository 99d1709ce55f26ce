"""UV maps for compositing programs."""
