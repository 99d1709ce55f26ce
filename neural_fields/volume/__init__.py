"""3D scenes: rays, a background field, a person and what they carry; fields on hash grids."""
