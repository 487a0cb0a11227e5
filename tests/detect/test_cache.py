"""The cache of features goes on after a stop and answers for no other settings."""

import json

import pytest
import torch

from detect.cache import FeatureCache, StaleCacheError

SETTINGS = {"model": "cifar10", "revision": "abc", "steps": 20, "dtype": "float32"}


def features(keys):
    return torch.stack([torch.full((3, 2, 2), float(key)) for key in keys])


def test_features_come_back_in_the_order_of_their_keys(tmp_path):
    cache = FeatureCache(tmp_path / "cache", SETTINGS, shard_size=3)
    cache.fill(map(str, range(8)), features, batch_size=2)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 3
    again = FeatureCache(tmp_path / "cache", SETTINGS)
    assert len(again) == 8
    torch.testing.assert_close(again.get(["7", "0", "7"]), features(["7", "0", "7"]))
    with pytest.raises(KeyError):
        again.get(["9"])


def test_a_stopped_run_computes_what_is_missing_alone(tmp_path):
    asked = []

    def compute(keys):
        asked.extend(keys)
        if len(asked) > 6:
            raise KeyboardInterrupt
        return features(keys)

    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path, SETTINGS, shard_size=4).fill(map(str, range(10)), compute, batch_size=2)
    asked.clear()
    cache = FeatureCache(tmp_path, SETTINGS)
    assert len(cache) == 4
    cache.fill(map(str, range(10)), lambda keys: asked.extend(keys) or features(keys), batch_size=4)
    assert asked == [str(number) for number in range(4, 10)]
    torch.testing.assert_close(cache.get(["5"]), features(["5"]))


def test_other_settings_are_refused_by_name(tmp_path):
    FeatureCache(tmp_path, SETTINGS).fill(["1"], features)
    with pytest.raises(StaleCacheError, match=r"steps 20, now 10\): delete it or name another folder"):
        FeatureCache(tmp_path, {**SETTINGS, "steps": 10})
    with pytest.raises(StaleCacheError, match="side None, now 224"):
        FeatureCache(tmp_path, {**SETTINGS, "side": 224})


def test_damage_is_told(tmp_path):
    FeatureCache(tmp_path, SETTINGS).fill(["1"], features)
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(b"nothing")
    with pytest.raises(StaleCacheError, match="lost"):
        FeatureCache(tmp_path, SETTINGS).get(["1"])
    (tmp_path / "manifest.json").write_text(json.dumps([1]))
    with pytest.raises(StaleCacheError, match="is damaged"):
        FeatureCache(tmp_path, SETTINGS)


def test_nothing_is_written_before_there_is_something(tmp_path):
    cache = FeatureCache(tmp_path / "cache", SETTINGS)
    cache.fill([], features)
    assert not (tmp_path / "cache").exists()
    cache.add("1", features("1")[0])
    assert "1" in cache
    torch.testing.assert_close(cache.get(["1"]), features("1"))
    cache.flush()
    assert [path.suffix for path in sorted((tmp_path / "cache").iterdir())] in (
        [".safetensors", ".json"],
        [".json", ".safetensors"],
    )
