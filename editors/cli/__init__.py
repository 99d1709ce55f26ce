"""Commands of the editors, and the program `unwrap` that joins all commands."""
