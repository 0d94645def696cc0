"""The character classes behind the cuts, held against the Unicode database of this interpreter."""

from __future__ import annotations

import re
import unicodedata

from extproc.tokens.counter import NFC_GROWTH
from extproc.tokens.incremental import _LETTERS, _SIGNS, _STARTERS


def members(character_class: str) -> list[str]:
    pattern = re.compile(f"[{character_class}]")
    return pattern.findall("".join(map(chr, range(0xD800))) + "".join(map(chr, range(0xE000, 0x20000))))


def test_signs_are_no_letters_numbers_or_white_space() -> None:
    assert len(members(_SIGNS)) > 1_000
    for character in members(_SIGNS):
        assert unicodedata.category(character)[0] not in "LNZ", ascii(character)
        assert not character.isspace()
        assert not character.isalnum()


def test_letters_are_letters() -> None:
    for character in members(_LETTERS):
        assert unicodedata.category(character)[0] == "L" or unicodedata.name(character, "") == "", ascii(character)


def test_what_python_calls_a_word_character_is_a_letter_or_number() -> None:
    """``[^\\W_]`` stands for ``[\\p{L}\\p{N}]`` on the left of a cut."""
    for character in re.findall(r"[^\W_]", "".join(map(chr, range(0x20000)))):
        assert unicodedata.category(character)[0] in "LN", ascii(character)


def test_starters_never_combine_with_what_precedes() -> None:
    """Neither by canonical composition (second of a pair, Hangul vowels and finals) nor by sorting (combining class)."""
    everything = [chr(code) for code in range(0x20000) if not 0xAC00 <= code < 0xE000]
    seconds = {
        chr(int(parts[1], 16))
        for parts in map(str.split, map(unicodedata.decomposition, everything))
        if len(parts) == 2 and parts[0][0] != "<"
    }
    seconds |= {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}
    for character in members(_STARTERS + _SIGNS):
        first = unicodedata.normalize("NFD", character)[0]
        assert unicodedata.combining(first) == 0, ascii(character)
        assert first not in seconds, ascii(character)


def test_nfc_grows_at_most_threefold() -> None:
    growth = max(
        len(unicodedata.normalize("NFC", character).encode()) / len(character.encode())
        for character in map(chr, (*range(0xD800), *range(0xF900, 0x20000), *range(0x2F800, 0x2FA20)))
        if not unicodedata.is_normalized("NFC", character)
    )
    assert growth == NFC_GROWTH
