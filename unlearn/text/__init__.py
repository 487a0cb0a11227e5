"""Backdoors in text-to-image models: planted with a known answer, found, taken out, and tried again."""
