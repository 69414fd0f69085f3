"""Measures of images: what they say (``clip``), and how near they are to what they should be (``image``)."""
