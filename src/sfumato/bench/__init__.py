"""Benches: what the project claims, as numbers anyone can measure again."""
