"""Files for other programs: maps, mattes, layered pictures, flattened clips, tracks and labels."""
