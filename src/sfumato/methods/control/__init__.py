"""Steering what is painted: by losses, classifiers and limits."""

from sfumato.methods.control.classifier_guidance import ClassifierGuidance
from sfumato.methods.control.dynamic_thresholding import DynamicThresholding
from sfumato.methods.control.universal_guidance import UniversalGuidance

__all__ = ["ClassifierGuidance", "DynamicThresholding", "UniversalGuidance"]
