"""Other people's published loops, to compare with."""
