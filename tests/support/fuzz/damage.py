"""How tests/bench/fuzz.py damages valid files: bytes, JSON values, YAML lines and csv cells, and its extreme values."""

import copy
import json
import random
from typing import Any

NUMBERS = (
    "0",
    "-1",
    "1",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e308",
    "-1e308",
    "1e-320",
    "9" * 30,
    "9" * 5000,
    "0x10",
    "2.5",
)
TEXTS = (
    "",
    "null",
    "true",
    "[]",
    "{}",
    "[[]]",
    "\x1b[31mred",
    "../../../outside",
    "/etc/passwd",
    "a" * 5000,
    "é\u202e",
)
TEXTS += ("a,b", "'", '"', "\\", "\x00", "${oc.env:HOME}", "*a", "&a [*a, *a]", "!!python/name:os.system", "[" * 3000)
VALUES = (None, True, 0, -1, 1e308, 10**30, 4_000_000, 10**9, float("nan"), float("inf"), "", "x", "\x1b[2J", "../../x")
VALUES += ([], {}, [[]], [None], {"a": 1}, [0] * 1000, "a" * 10_000)


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with one to four random changes: bits, cuts, repeated parts, extreme numbers."""
    for _ in range(rng.randint(1, 4)):
        i, j = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        near = rng.randrange(min(len(data), 128) + 1)  # headers are at the beginning
        number = rng.choice((b"\xff" * 4, b"\x00" * 4, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\x01\x00\x00\x00"))
        data = rng.choice(
            (
                data[:i],
                data[:i] + data[j:],
                data[:j] + data[i:j] + data[j:],
                data[:near] + number + data[near + 4 :],
                data[:near] + rng.randbytes(rng.randint(1, 8)) + data[near:],
                data[:near] + bytes([rng.randrange(256)]) + data[near + 1 :],
                data[:i] + bytes([rng.randrange(256)]) + data[i + 1 :],
            )
        )
    return data


def damaged_json(content: Any, rng: random.Random) -> bytes:
    """Return the JSON text of `content` with one to three values or keys replaced, or with damaged bytes."""
    if rng.random() < 0.2:
        return damaged_bytes(json.dumps(content).encode(), rng)
    if rng.random() < 0.03:
        return rng.choice(
            (b"[" * 200_000, b'{"a":' * 100_000, b"42", b"[]", b"{}", b"null", b'"x"', b"\xff", b"1" * 5000)
        )
    content = json.loads(json.dumps(content))
    for _ in range(rng.randint(1, 3)):
        places: list[tuple[Any, Any]] = []

        def walk(part: Any, places: list[tuple[Any, Any]] = places) -> None:
            for key, value in list(part.items() if isinstance(part, dict) else enumerate(part)):
                places.append((part, key))
                if isinstance(value, dict | list):
                    walk(value, places)

        if isinstance(content, dict | list):
            walk(content)
        if not places:
            break
        part, key = rng.choice(places)
        way = rng.random()
        if way < 0.15:
            del part[key]
        elif way < 0.25 and isinstance(part, dict):
            part[rng.choice(("x", "\x1b[2J", "format", "name"))] = part.pop(key)
        else:
            part[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(content).encode()


def damaged_yaml(text: str, rng: random.Random) -> bytes:
    """Return the YAML `text` with one to three lines or values replaced, or with damaged bytes."""
    for _ in range(rng.randint(1, 3)):
        lines = text.splitlines(keepends=True)
        i = rng.randrange(len(lines)) if lines else 0
        line = lines[i] if lines else ""
        head, _, _ = line.partition(":")
        new = rng.choice(
            (f"{head}: {rng.choice((*NUMBERS, *TEXTS))}\n", line + line, "", f" {line}", rng.choice(TEXTS))
        )
        numbers = [w for w in line.replace("[", " ").replace("]", " ").replace(",", " ").split() if w[0].isdigit()]
        if numbers and rng.random() < 0.5:
            new = line.replace(rng.choice(numbers), rng.choice(NUMBERS), 1)
        text = "".join(lines[:i]) + new + "".join(lines[i + 1 :])
    return damaged_bytes(text.encode(), rng) if rng.random() < 0.2 else text.encode()


def damaged_csv(content: bytes, rng: random.Random) -> bytes:
    """Return the table `content` with one cell replaced, or with damaged bytes."""
    if rng.random() < 0.3:
        return damaged_bytes(content, rng)
    mark = b"\t" if b"\t" in content.splitlines()[0] else b","
    rows = [line.split(mark) for line in content.splitlines()]
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = rng.choice((*NUMBERS, *TEXTS)).encode()
    if rng.random() < 0.2:
        row.append(b"more")
    return b"\n".join(mark.join(row) for row in rows) + b"\n"
