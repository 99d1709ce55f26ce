"""What everything rests on: errors, coordinates, files, threads, progress."""
