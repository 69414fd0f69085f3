"""Pure functions of tensors: warps, blur, regions, correspondence."""
