"""Other names and years in real text: an endless supply of entities that no network can know by heart.

A few tens of millions of tokens hold few names, and a network that sees them dozens of times learns them instead of how to
match strings. Renaming a passage and its questions alike leaves the language and changes what has to be matched."""
import re

from training import words

NAME_OR_YEAR = re.compile(r"\b[A-Z][a-z]{2,}\b|\b1\d{3}\b|\b20[0-2]\d\b")


def renamed(rng, lex, text):
    """{name or year of `text`: another}. Names are capitalised words that the text collection does not use in lower case."""
    found = sorted({w for w in NAME_OR_YEAR.findall(text) if w[0].isdigit() or w.lower() not in lex.counts})
    years = rng.random() < 0.5
    return {w: other_name(rng, lex) if w[0].isalpha() else other_year(rng, w) for w in found if years or w[0].isalpha()}


def apply(names, text):
    """`text` with the words of `names` replaced."""
    return NAME_OR_YEAR.sub(lambda m: names.get(m.group(), m.group()), text) if names else text


def other_name(rng, lex):
    kind = rng.random()
    if kind < 0.45 and lex.names:
        return rng.choice(lex.names)
    return (words.pseudo_word(rng) if kind < 0.85 else rng.choice(lex.words)).capitalize()


def other_year(rng, year):
    return f'{year[:2]}{rng.randrange(100):02}' if rng.random() < 0.7 else str(rng.randint(1000, 2029))
