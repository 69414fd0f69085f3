"""Pages that show what the library does."""
