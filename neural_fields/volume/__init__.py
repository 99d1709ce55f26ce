"""3D scenes: rays, a background field, and a person with carried objects; fields on hash grids."""
