"""What the repository's own upkeep needs; no part of the package."""
