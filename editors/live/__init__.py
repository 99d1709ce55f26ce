"""A preview whenever a picture is saved."""
