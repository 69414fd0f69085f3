"""Pure functions of tensors: warps, regions, correspondence."""
