"""Families of networks as backbones, one adapter a file, and how a checkpoint is found and loaded."""
