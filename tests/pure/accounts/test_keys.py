"""Keys: random, checked, hashed."""

from __future__ import annotations

from hashlib import sha256

from extproc.accounts.keys import ALPHABET, hash_of, hint_of, is_well_formed, new_key


def test_a_new_key_is_well_formed_and_new():
    keys = {new_key() for _ in range(500)}
    assert len(keys) == 500
    assert all(is_well_formed(key) and key.startswith("sk-") and len(key) == 41 for key in keys)


def test_every_single_typo_is_seen():
    key = new_key()
    for place in range(3, len(key)):
        for letter in ALPHABET:
            if letter != key[place]:
                assert not is_well_formed(key[:place] + letter + key[place + 1 :])


def test_swapped_neighbours_are_seen():
    key = new_key()
    swapped = [key[:i] + key[i + 1] + key[i] + key[i + 2 :] for i in range(3, len(key) - 1) if key[i] != key[i + 1]]
    assert swapped
    assert not any(is_well_formed(one) for one in swapped)


def test_what_is_no_key():
    key = new_key()
    for text in ("", "sk-", key[:-1], key + "0", key + "\n", key.replace("sk-", "sk_"), "Bearer " + key, "sk-" + "é" * 38, "sk-\ud800"):
        assert not is_well_formed(text)


def test_the_hash_is_sha256_and_any_text_has_one():
    assert hash_of("sk-x") == sha256(b"sk-x").digest()
    assert len(hash_of("\ud800")) == 32


def test_the_hint_is_part_of_the_checksum_only():
    key = new_key()
    assert hint_of(key) == key[-4:]
