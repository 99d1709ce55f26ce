"""A preview that is updated whenever a picture is saved."""
