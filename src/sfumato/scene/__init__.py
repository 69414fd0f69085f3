"""Scenes in three dimensions: cameras, fields and what renders them; made from photographs or from a model's prior.

The world is Still Life's: y is up, azimuth 0 looks from +z, 90 from +x. Cameras are OpenGL's: x to the right, y up, a
camera looks along its -z. Pixel centres lie at halves, rows go down. Depth is along the ray.
"""
