"""Keys and values of generated facts: many shapes, so that a model learns to match strings and not a list of them.

Every function takes a `random.Random` and a Lexicon. Some shapes are kept for evaluation (HELD_OUT_KEYS)."""
import re
import string

ONSETS = 'b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sh sk sl sm sn sp st str t th tr v w x y z'.split()
VOWELS = 'a e i o u ai au ea ee ei ia io oa oo ou y'.split()
CODAS = ' b ck d f g k l ll m n nd ng nt p r rd rk rm rn rt s sh sk ss st t th x z'.split(' ')
MONTHS = ('January February March April May June July August September October November December').split()


def pseudo_word(rng, syllables=None):
    """A pronounceable word that no dictionary has: 'strooken', 'vailrim'."""
    count = syllables or rng.choice((2, 2, 3))
    return ''.join(rng.choice(ONSETS) + rng.choice(VOWELS) + (rng.choice(CODAS) if rng.random() < 0.6 else '') for _ in range(count))


def digits(rng, low, high):
    return ''.join(rng.choice(string.digits) for _ in range(rng.randint(low, high)))


def hex_digits(rng, low, high):
    return ''.join(rng.choice('0123456789abcdef') for _ in range(rng.randint(low, high)))


def letters(rng, low, high):
    return ''.join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(low, high)))


def date(rng):
    day, month, year = rng.randint(1, 28), rng.randrange(12), rng.randint(1700, 2060)
    return rng.choice((f'{day} {MONTHS[month]} {year}', f'{MONTHS[month]} {day}, {year}', f'{year}-{month + 1:02}-{day:02}',
                       f'{MONTHS[month]} {day}', f'{day:02}/{month + 1:02}/{year}'))


def time_of_day(rng):
    return rng.choice((f'{rng.randint(0, 23):02}:{rng.randint(0, 59):02}', f'{rng.randint(1, 12)}:{rng.randint(0, 59):02} {rng.choice(("am", "pm"))}'))


def person(rng, lex):
    first = rng.choice(lex.names) if lex.names and rng.random() < 0.7 else pseudo_word(rng).capitalize()
    last = rng.choice(lex.names) if lex.names and rng.random() < 0.4 else pseudo_word(rng).capitalize()
    return rng.choice((f'{first} {last}', first, f'{rng.choice(("Dr.", "Mr.", "Ms.", "Captain", "Professor"))} {last}',
                       f'{first} {letters(rng, 1, 1)}. {last}'))


def _word(rng, lex):
    return rng.choice(lex.words) if rng.random() < 0.8 else pseudo_word(rng)


SEPARATORS = (' ', ' ', '-', '_', ':', '+', '~', '|', '::', ' - ', '@', '->', '*', '=', ' in ', ' at ', ' no. ', ' of ', ' by ', ' x ', '--', '%', '^', '!',
              ' and ', ' and ', ' or ', ', ', ' + ', ' with ', ' plus ', '; ')      # the last: one key, not two
WRAPPERS = ('()', '[]', '<>', "''", '**', '{}', '``', '«»', '__', '""', '""')


def compound(rng, lex):
    """A key of random build: one to four words, numbers or letters, joined and wrapped in some way, in some case. It has no
    dots, slashes, hashes, ampersands or "the": those build the keys that are held out. Quotes it has, as people's keys do, but not around two words and "&"."""
    parts = (lambda: _word(rng, lex), lambda: _word(rng, lex), lambda: pseudo_word(rng), lambda: rng.choice(lex.nouns), lambda: digits(rng, 1, 5),
             lambda: letters(rng, 1, 4), lambda: hex_digits(rng, 3, 6))
    case = rng.choice((str, str, str.upper, str.capitalize, str.lower))
    separator, count = rng.choice(SEPARATORS), rng.choice((1, 2, 2, 3, 3, 4))
    made = separator.join(case(rng.choice(parts[:4] if i == 0 else parts)()) for i in range(count))
    if rng.random() < 0.25:
        wrapper = rng.choice(WRAPPERS)
        made = wrapper[0] + made + wrapper[1]
    return made


KEYS = {
    'compound': compound,
    'word': lambda r, x: _word(r, x),
    'two words': lambda r, x: f'{_word(r, x)} {_word(r, x)}',
    'hyphen': lambda r, x: f'{_word(r, x)}-{_word(r, x)}',
    'title': lambda r, x: f'{_word(r, x).capitalize()} {_word(r, x).capitalize()}',
    'the': lambda r, x: f'the {_word(r, x)} {r.choice(x.nouns)}',
    'the one': lambda r, x: f'the {r.choice(x.nouns)}',
    'three words': lambda r, x: f'{_word(r, x)} {_word(r, x)} {_word(r, x)}',
    'pseudo': lambda r, x: pseudo_word(r),
    'place': lambda r, x: pseudo_word(r).capitalize(),
    'person': person,
    'code': lambda r, x: f'{letters(r, 1, 4)}-{digits(r, 2, 5)}',
    'hex': lambda r, x: hex_digits(r, 6, 10),
    'number': lambda r, x: digits(r, 4, 8),
    'series': lambda r, x: f'{_word(r, x)} {r.choice(x.nouns)} {r.randint(1, 60)}',
    'numbered': lambda r, x: f'{r.choice(x.nouns)} {digits(r, 1, 4)}',
    'initials': lambda r, x: f'{letters(r, 1, 3)}&{letters(r, 1, 3)}' + (f' {r.choice(x.nouns)}' if r.random() < 0.5 else ''),
    'snake': lambda r, x: f'{_word(r, x)}_{_word(r, x)}',
    'camel': lambda r, x: f'{_word(r, x)}{_word(r, x).capitalize()}',
    'email': lambda r, x: f'{_word(r, x)}.{_word(r, x)}@{_word(r, x)}.{r.choice(("com", "org", "net"))}',
    'path': lambda r, x: f'/{_word(r, x)}/{_word(r, x)}.{r.choice(("txt", "csv", "log", "md"))}',
    'date': lambda r, x: date(r),
    'of': lambda r, x: f'the {r.choice(x.nouns)} of {pseudo_word(r).capitalize()}',
}
HELD_OUT_KEYS = {
    'dotted': lambda r, x: f'{_word(r, x)}.{_word(r, x)}.{_word(r, x)}',
    'hash': lambda r, x: f'{_word(r, x).upper()}#{digits(r, 2, 3)}',
    'slash': lambda r, x: f'{_word(r, x)}/{_word(r, x)}-{digits(r, 1, 2)}',
    'epithet': lambda r, x: f'{pseudo_word(r).capitalize()} the {_word(r, x).capitalize()}',
    'quoted': lambda r, x: f'"{_word(r, x)} & {_word(r, x)}"',
}
VALUES = {
    'digits': lambda r, x: digits(r, 4, 9),
    'digits5': lambda r, x: digits(r, 5, 7),
    'phone': lambda r, x: f'{digits(r, 3, 3)}-{digits(r, 4, 4)}',
    'code': lambda r, x: f'{letters(r, 1, 3)}{r.choice(("-", ""))}{digits(r, 2, 5)}',
    'hex': lambda r, x: hex_digits(r, 5, 10),
    'word': lambda r, x: _word(r, x),
    'two words': lambda r, x: f'{_word(r, x)} {_word(r, x)}',
    'pseudo': lambda r, x: pseudo_word(r),
    'person': person,
    'date': lambda r, x: date(r),
    'time': lambda r, x: time_of_day(r),
    'money': lambda r, x: f'${r.randint(1, 999)},{digits(r, 3, 3)}' if r.random() < 0.5 else f'{r.randint(1, 9999)} dollars',
    'measure': lambda r, x: f'{r.randint(1, 999)}.{r.randint(0, 9)} {r.choice(("km", "kg", "m", "GB", "degrees", "miles", "volts"))}',
    'phrase': lambda r, x: ' '.join(_word(r, x) for _ in range(r.randint(3, 6))),
}


def near_duplicate(rng, lex, key, other_number=0.0):
    """A key that shares most of its characters with `key`: one word replaced, or one digit or letter changed; or, of those with a number,
    with probability other_number another number. (Evaluation has none of these: its tables stay comparable.)"""
    if other_number and (numbers := list(re.finditer(r'\d+', key))) and rng.random() < other_number:
        found = rng.choice(numbers)
        size = len(found.group()) if rng.random() < 0.4 else min(2, len(found.group()))     # small numbers more often
        return key[:found.start()] + str(rng.randrange(10 ** size)) + key[found.end():]
    parts = key.split(' ')
    if len(parts) > 1 and rng.random() < 0.6:
        i = rng.randrange(len(parts))
        parts[i] = rng.choice(lex.words) if parts[i].isalpha() else _changed(rng, parts[i])
        return ' '.join(parts)
    for separator in '-_.@/':
        if separator in key and rng.random() < 0.7:
            sides = key.split(separator)
            i = rng.randrange(len(sides))
            sides[i] = rng.choice(lex.words) if sides[i].isalpha() else _changed(rng, sides[i])
            return separator.join(sides)
    return _changed(rng, key)


def _changed(rng, text):
    """`text` with one letter or digit replaced by another of its kind."""
    places = [i for i, c in enumerate(text) if c.isalnum()]
    if not places:
        return text + rng.choice(string.digits)
    i = rng.choice(places)
    kind = string.digits if text[i].isdigit() else string.ascii_uppercase if text[i].isupper() else string.ascii_lowercase
    return text[:i] + rng.choice(kind) + text[i + 1:]
