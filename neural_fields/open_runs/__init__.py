"""Open runs: each part of a run is read when it is first used, and only once."""
