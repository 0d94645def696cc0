"""The prefix cache finds whole blocks from the beginning, never the last token, never across salts."""

from __future__ import annotations

from extproc.local.sim.prefix_cache import PrefixCache


def test_whole_blocks_from_the_beginning():
    cache = PrefixCache()
    prompt = list(range(50))
    assert cache.read(prompt, salt="") == 0
    assert cache.read(prompt, salt="") == 48
    assert cache.read(prompt[:40], salt="") == 32
    assert cache.read([*prompt[:20], "other", *prompt[21:]], salt="") == 16
    assert cache.read(["other", *prompt[1:]], salt="") == 0
    assert cache.read(prompt[16:], salt="") == 0  # known blocks, but not as a beginning


def test_the_last_token_is_always_computed():
    cache = PrefixCache()
    for tokens, cached in ((32, 16), (33, 32), (16, 0), (1, 0), (0, 0)):
        cache.read(range(tokens), salt="")
        assert cache.read(range(tokens), salt="") == cached


def test_salts_keep_tenants_apart():
    cache = PrefixCache()
    assert [cache.read(range(40), salt=salt) for salt in ("a", "b", "a", "b", "")] == [0, 0, 32, 32, 0]


def test_what_was_not_used_for_the_longest_time_is_forgotten():
    cache = PrefixCache(blocks_max=4)
    one, other, third = (list(range(start, start + 33)) for start in (0, 100, 200))
    assert [cache.read(prompt, salt="") for prompt in (one, other, one, third, one, other)] == [0, 0, 32, 0, 32, 0]
