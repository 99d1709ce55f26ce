"""What an editor is, what it reads, and the stack that its edits go onto."""
