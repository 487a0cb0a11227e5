"""Robust classifiers: adversarial training and adversarial robustness distillation."""

from distill.classifier import Classifier, Teacher, load
from distill.losses import kl, total
from distill.method import Method, Step

__all__ = ["Classifier", "Method", "Step", "Teacher", "kl", "load", "total"]
