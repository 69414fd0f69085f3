"""Reading images: one image asked many things (``read``), and what is found in it."""

from sfumato.reading.reader import Noise, Reader, extract, pixels, read
from sfumato.reading.results import Matches, Segments

__all__ = ["Matches", "Noise", "Reader", "Segments", "extract", "pixels", "read"]
