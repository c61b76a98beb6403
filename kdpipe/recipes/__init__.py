"""Recipes: one file per way to train a teacher."""
