"""Seeded changes of texts, and what must come of a command that is given the result."""

from d2go_fbnetv5.utils.errors import InputError

VALUES = [
    *[
        "",
        "~",
        "null",
        "yes",
        "no",
        "1e5",
        "08",
        "1_0",
        "0x1F",
        "1.10",
        ".inf",
        "nan",
        "-1",
        "0",
        "1e400",
        "1:30",
    ],
    *[
        "9" * 30,
        "9" * 5000,
        "2024-01-15",
        "'8'",
        '"a',
        "[",
        "{",
        "[]",
        "{}",
        "[1, a]",
        "{a: 1}",
        "a: b",
        "&a [*a]",
    ],
    *[
        "*b",
        "!!python/name:os.system",
        "\\ud800",
        "\ud7ff",
        "\u0663",
        "\x00",
        "\x1b[31m",
        "[red]x[/y]",
        "[" * 3000,
    ],
]


def mutate(text, random):
    """Change one to three places: a word becomes an odd one, a line goes, comes twice, or is cut or joined."""
    for _ in range(random.randint(1, 3)):
        lines = text.split("\n")
        place = random.randrange(len(lines))
        kind = random.choice(["value", "value", "value", "drop", "twice", "cut", "join", "indent"])
        line = lines[place]
        if kind == "value":
            words = line.split(" ")
            words[random.randrange(len(words))] = random.choice(VALUES)
            lines[place] = " ".join(words)
        elif kind == "drop":
            del lines[place]
        elif kind == "twice":
            lines.insert(random.randrange(len(lines) + 1), line)
        elif kind == "cut":
            lines[place] = line[: random.randint(0, len(line))]
        elif kind == "join":
            lines[place : place + 2] = [" ".join(lines[place : place + 2])]
        else:
            lines[place] = " " * random.randint(0, 4) + line.strip()
        text = "\n".join(lines)
    return text


def outcome(run):
    """Return what `run` gives, or the one sentence that it is refused by; anything else is raised."""
    try:
        return run()
    except (InputError, OSError) as error:
        message = str(error)
        assert message and len(message) < 3000, message[:3000]
        return message
