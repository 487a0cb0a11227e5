"""Generative models behind one interface: schedules, denoisers, samplers, losses and loading."""
