"""Questions about plain text, made from the text itself: what followed, which word belongs here, keywords and sentences.

Keyword questions make the landmark of a chunk carry its rare words, which is what BM25 ranks by; they are the bridge from
unlabelled text to real questions (inverse cloze task: arXiv 1906.00300)."""
import re

from training.rows import Part, Question

WORD = re.compile(r"[^\W_]+(?:['.,-][^\W_]+)*")
SUFFIXES = ('ing', 'ed', 'es', 's', 'ly')


def continuation(rng, tokenizer, ids, position, chunks_of):
    """Verbatim recall: some tokens of the text, then what followed. ids: a stretch of memory that begins at `position`."""
    prompt, answer = rng.randint(7, 20), rng.randint(5, 14)
    if len(ids) < prompt + answer:
        return None
    tail = tokenizer.decode(ids[prompt:prompt + answer])
    if '\ufffd' in tail or not tail.strip():
        return None
    first = position + prompt
    return Question([int(i) for i in ids[:prompt]], split_by_chunk(tokenizer, tail, first, answer, chunks_of), kind='continuation', weight=0.5)


def split_by_chunk(tokenizer, text, first, count, chunks_of):
    """Answer tokens of `text`, which stands at memory tokens [first, first+count), as one Part for each chunk."""
    ids = tokenizer.encode_answer(text)
    extra = max(0, len(ids) - count)                            # the leading space
    parts = []
    for offset, token in enumerate(ids):
        at = first + min(max(0, offset - extra), count - 1)
        gold = chunks_of(at, at + 1)
        if parts and parts[-1].gold == gold:
            parts[-1].ids.append(token)
        else:
            parts.append(Part([token], gold))
    return parts


def keyword_question(rng, tokenizer, lex, ids, position, chunks_of):
    """A question about one sentence of the text whose answer is a word or name of it, or None where nothing fits."""
    text = tokenizer.decode(ids)
    if '\ufffd' in text:
        return None
    begin, end = sentence_span(rng, text)
    found = [(m.group(), m.start() + begin) for m in WORD.finditer(text[begin:end])]
    if len(found) < 5:
        return None
    first, last = choose_answer(rng, lex, found)
    answer = text[found[first][1]:found[last][1] + len(found[last][0])]
    others = [(w, at) for i, (w, at) in enumerate(found) if not first <= i <= last and w.lower() not in answer.lower()]
    content = [w for w, _ in others if lex.weight(w) > 2.0 or w[0].isdigit()]
    if len(content) < 2:
        return None
    asked = ask_word(rng, answer)
    if rng.random() < 0.65:
        question = keywords(rng, lex, content, asked)
    else:
        question = blanked(rng, text[begin:end], found[first][1] - begin, len(answer), asked)
    a, b = tokenizer.token_span(ids, text, found[first][1], len(answer))
    gold = chunks_of(position + a, position + b)
    whole = tokenizer.token_span(ids, text, begin, end - begin)
    ignored = chunks_of(position + whole[0], position + whole[1]) - gold
    return Question(tokenizer.encode(question), [Part(tokenizer.encode_answer(answer), gold, ignored)], kind='keywords', weight=0.3)


def sentence_span(rng, text):
    """A random whole sentence of the text, or all of it where there is none."""
    ends = [m.end() for m in re.finditer(r'[.!?]["\')]?\s', text)]
    spans = [(a, b) for a, b in zip(ends, ends[1:] + [len(text)]) if 40 < b - a < 400]
    return rng.choice(spans) if spans else (0, len(text))


def choose_answer(rng, lex, found):
    """First and last word of the answer: a run of capitalised words, a number, or a rare word."""
    rare = [i for i, (w, _) in enumerate(found) if i > 0 and (w[0].isupper() or w[0].isdigit())]
    if not rare or rng.random() < 0.3:
        rare = sorted(range(len(found)), key=lambda i: -lex.weight(found[i][0]))[:4]
    first = last = rng.choice(rare)
    while last + 1 < len(found) and last - first < 3 and found[first][0][0].isupper() and found[last + 1][0][0].isupper():
        last += 1
    return first, last


def ask_word(rng, answer):
    if answer[0].isdigit():
        return rng.choice(('when', 'how many', 'what year', 'how much', 'what'))
    if answer[0].isupper():
        return rng.choice(('who', 'where', 'which', 'what', 'who', 'what is the name of'))
    return rng.choice(('what', 'how', 'which', 'what kind of', 'why', 'what is'))


def keywords(rng, lex, content, asked):
    """A search query: some content words, rarer ones more often, sometimes without their endings."""
    count = rng.randint(min(3, len(content)), min(8, len(content)))
    ranked = sorted(range(len(content)), key=lambda i: -lex.weight(content[i]) * (0.4 + rng.random()))[:count]
    chosen = [content[i] for i in (sorted(ranked) if rng.random() < 0.7 else ranked)]
    chosen = [strip_suffix(rng, w) for w in chosen]
    if rng.random() < 0.5:
        chosen = [glue for w in chosen for glue in ((rng.choice(('the', 'of', 'in', 'a', 'to', 'for', 'was', 'is', 'did')), w)
                                                    if rng.random() < 0.4 else (w,))]
    text = ' '.join(([asked] if rng.random() < 0.75 else []) + chosen)
    text = text.lower() if rng.random() < 0.6 else text[0].upper() + text[1:]
    return text + ('?' if rng.random() < 0.5 else '')


def strip_suffix(rng, word):
    if rng.random() < 0.25 and word.islower() and len(word) > 5:
        for suffix in SUFFIXES:
            if word.endswith(suffix):
                return word[:-len(suffix)]
        return word + rng.choice(('s', 'ed', 'ing'))
    return word


def blanked(rng, sentence, at, length, asked):
    """The sentence, or the words around the answer, with the answer replaced."""
    before, after = sentence[:at].split(), sentence[at + length:].split()
    keep = rng.choice((4, 8, 14))
    words = before[-keep:] + [rng.choice((asked, '___', asked))] + after[:keep]
    text = ' '.join(words).replace(' ,', ',').strip()
    return (text.lower() if rng.random() < 0.3 else text) + rng.choice(('', '?'))
