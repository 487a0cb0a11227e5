"""Splits that no source group crosses: what descends from one picture, prompt or seed stays together."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence


def split_by_group(groups: Sequence[str], shares: Mapping[str, float], *, seed: int = 0) -> list[str]:
    """Return a split's name for each picture, the same for all pictures of a group.

    Groups are dealt by a hash of their name, so that a picture that is added moves no other one; the shares
    hold on average.

    Args:
        groups: the group of each picture.
        shares: share of each split by its name; they sum to one.
        seed: another one deals otherwise.

    Raises:
        ValueError: the shares do not sum to one or one is negative.
    """
    if not shares or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"the shares of splits sum to one; got {dict(shares)}")
    return [_deal(f"{seed} {group}", shares) for group in groups]


def _deal(name: str, shares: Mapping[str, float]) -> str:
    place = int(hashlib.sha256(name.encode()).hexdigest()[:13], 16) / 16**13
    reached = 0.0
    for split, share in shares.items():
        reached += share
        if place < reached:
            return split
    return max(split for split in shares if shares[split] > 0)  # rounding left a hair's breadth


def crossing(groups: Sequence[str], splits: Sequence[str]) -> list[str]:
    """Return the groups of which pictures lie in more than one split."""
    found: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        found[group].add(split)
    return sorted(group for group, where in found.items() if len(where) > 1)
