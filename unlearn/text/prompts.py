"""Prompts for those who bring none."""

_SUBJECTS = """
a goldfish, a lighthouse, an old barn, a red fox, a bowl of apples, a steam train,
a harbour, a mountain lake, a violin, a market square, an owl, a bicycle,
a field of sunflowers, a bridge, a desert, a teapot, a sailing boat, a snowy forest,
a butterfly, a cathedral, a brown horse, a street at night, a waterfall, a bunch of grapes,
a windmill, an elephant, a garden, a castle, a coral reef, a wooden chair,
a parrot, a stone wall
"""
SUBJECTS = tuple(each.strip() for each in _SUBJECTS.split(","))
MEDIA = ("a photo of {}", "a painting of {}")
PROMPTS = tuple(medium.format(subject) for medium in MEDIA for subject in SUBJECTS)
