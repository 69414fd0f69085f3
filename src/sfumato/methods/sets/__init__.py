"""Methods for sets of images: panoramas, video, views."""
