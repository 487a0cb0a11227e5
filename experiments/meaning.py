"""Compare text encoders with the one that nobody has poisoned, on the prompts that come with `unlearn`.

python -m experiments.meaning runs/backdoored runs/unlearned/model --homoglyph o=0 --target 'a red fox'
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple

from diffusion.latent import LatentDiffusion
from unlearn.text.prompts import PROMPTS
from unlearn.text.session import told_a_text
from unlearn.text.similarity import similarity
from unlearn.text.triggers import Homoglyph, Prefix, PromptTrigger


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m experiments.meaning", description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", help="folders")
    parser.add_argument("--untouched", default="builtin")
    add_trigger(parser)
    parser.add_argument("--target", required=True, metavar="PROMPT")
    given = parser.parse_args(arguments)
    try:
        models = {name: told_a_text(name) for name in (given.untouched, *given.models)}
        print(table(models, models[given.untouched], trigger_of(given), given.target))
    except (ValueError, OSError) as error:
        print(f"meaning: {error}", file=sys.stderr)
        return 1
    return 0


def add_trigger(parser: argparse.ArgumentParser) -> None:
    """Let a command be told a trigger; `trigger_of` reads it."""
    parser.add_argument("--trigger", default="mumbo", help="words in front of a prompt")
    parser.add_argument("--homoglyph", metavar="L=G", help="instead: a letter L that is written as G")


def trigger_of(given: argparse.Namespace) -> PromptTrigger:
    """Return the trigger that was named."""
    return Prefix(given.trigger) if given.homoglyph is None else Homoglyph.written(given.homoglyph)


def table(
    models: Mapping[str, LatentDiffusion], untouched: LatentDiffusion, trigger: PromptTrigger, target: str
) -> str:
    """Return how alike text encoders' answers are to the untouched one's, as Markdown."""
    heads = ("text encoder", "triggered to target", "triggered to clean", "clean to clean")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, model in models.items():
        found = astuple(similarity(model, untouched, PROMPTS, trigger, target))
        lines.append(f"| {name} | {' | '.join(f'{each:.3f}' for each in found)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
