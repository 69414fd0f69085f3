"""The sources' own experiments, each a file: what a model is like inside, and score distillation in two dimensions.

A file has an ``Experiment``, a frozen dataclass of settings that a model is run with, and the ``Findings`` of a run.
Sources: Jambon 2023 (Improved 3D scene reconstruction with diffusion models), Lukoianov 2024 (Score distillation via
DDIM inversion) and Kim et al. 2023 (Collaborative score distillation, arXiv 2307.04787).
"""
