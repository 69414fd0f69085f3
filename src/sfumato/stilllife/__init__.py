"""Still Life: a world with ground truth, the model that paints it and the oracle that reads it."""
