"""Methods that read images: what is where, what corresponds to what. Functions of a ``Reader``; nothing is painted."""
