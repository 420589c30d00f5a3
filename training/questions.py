"""Real questions with their passages, and dialogues, as rows. Reads questions.jsonl of a prepared folder.

A record is {source, title, context, qas: [{q, a, alt, start}]}; `start` is a character offset of `a` in `context`, there
for spans only. bAbI has {facts, qas: [{q, a, upto, support}]} instead."""
import json

from training import renaming
from training.prose import split_by_chunk
from training.rows import Part, Question

PASSAGE_TOKENS_MAX = 640
ANSWER_TOKENS_MAX = 32
# How often a record is drawn: large narrow sets less, and questions that name no subject at most once in a memory.
SOURCE_WEIGHTS = {'squadshifts': 3.0, 'fairytaleqa': 3.0, 'medquad': 3.0, 'openstax-glossary': 2.0, 'qamr': 0.7, 'qmsum': 0.4, 'pubmedqa': 0.3}
ALONE = ('sgd', 'babi')


class QuestionSets:
    """All records, by source. Read-only."""

    def __init__(self, path):
        self.passages, self.alone, self.dialogues = {}, [], []
        with open(path, encoding='utf-8') as f:
            for line in f:
                record = json.loads(line)
                source = record['source']
                if source.startswith('babi'):
                    self.alone += babi_stories(record)
                elif source.startswith('sgd'):
                    self.alone.append(record)
                    self.dialogues.append(record['context'])
                elif record.get('persona1'):
                    self.dialogues.append(record['context'])
                elif record.get('context') and record.get('qas'):
                    self.passages.setdefault(source, []).append(record)
                    if source.startswith('qmsum'):
                        self.dialogues.append(record['context'])
        self.sources = list(self.passages)
        self.weights = [next((w for name, w in SOURCE_WEIGHTS.items() if s.startswith(name)), 1.0) for s in self.sources]

    def draw(self, rng, count):
        """A stream of records: half the time neighbours of one source (often the same article), else a mixture."""
        if rng.random() < 0.5:
            source = self.passages[rng.choices(self.sources, self.weights)[0]]
            at = rng.randrange(len(source))
            near = source[at:at + count]
            rng.shuffle(near)
            return near
        return [rng.choice(self.passages[s]) for s in rng.choices(self.sources, self.weights, k=count)]

    def memory_and_questions(self, world, rng):
        memory, questions = world.memory(), []
        apart = rng.random() < 0.8                                # each passage a document, or all in one
        records = self.draw(rng, 60) if self.passages else []
        if self.alone and rng.random() < 0.35:
            records.insert(rng.randrange(min(5, len(records) + 1)), rng.choice(self.alone))
        for record in records:
            if rng.random() < 0.6 and not record['source'].startswith(ALONE):
                record = renamed_record(rng, world.lex, record)
            ids = world.tokenizer.encode(record['context'])[:PASSAGE_TOKENS_MAX]
            if memory.room < 2 * world.chunk_size:
                break
            if apart or memory.length == 0:
                memory.begin_document()
            position = memory.append(ids)
            asked = record['qas']
            for qa in rng.sample(asked, min(3, len(asked))):
                question = as_question(world.tokenizer, memory, record, qa, ids, position, reworded(rng, world.lex, qa['q']))
                if question:
                    questions.append(question)
        return memory, questions

    def dialogue(self, world, rng):
        memory, questions = world.memory(), []
        for _ in range(30):
            if memory.room < 4 * world.chunk_size or not self.dialogues:
                break
            text = rng.choice(self.dialogues)
            ids = world.tokenizer.encode(text)[:PASSAGE_TOKENS_MAX]
            memory.begin_document()
            questions += dialogue_questions(world.tokenizer, rng, memory, text, ids, memory.append(ids))
        return memory, questions


def babi_stories(record):
    """Each question of a bAbI record as a record of its own: the facts up to the question are its passage."""
    stories = []
    for qa in record['qas'][-2:]:
        known = record['facts'][:qa['upto']]
        text = ' '.join(known)
        start = text.find(known[qa['support'][-1]]) if qa.get('support') else None
        stories.append({'source': record['source'], 'context': text, 'qas': [{'q': qa['q'], 'a': qa['a'], 'at': start}]})
    return stories


def renamed_record(rng, lex, record):
    """The record with other names and years, in passage, questions and answers alike."""
    names = renaming.renamed(rng, lex, record['context'])
    context, asked = renaming.apply(names, record['context']), []
    for qa in record['qas']:
        made = {'q': renaming.apply(names, qa['q']), 'a': renaming.apply(names, qa['a'] or '')}
        if qa.get('start') is not None:
            start = len(renaming.apply(names, record['context'][:qa['start']]))
            if context[start:start + len(made['a'])] == made['a']:   # not where the answer begins inside a name
                made['start'] = start
        asked.append(made)
    return {'source': record['source'], 'context': context, 'qas': asked}


def reworded(rng, lex, question):
    """The question as people type it: often in lower case, without a question mark, at times its rarer words alone."""
    if rng.random() < 0.1:
        kept = [w for w in question.rstrip('?').split() if lex.weight(w) > 1.5 or w[0].isupper()]
        question = ' '.join(kept) if len(kept) > 2 else question
    question = question.lower() if rng.random() < 0.45 else question
    return question.rstrip('?').rstrip() if rng.random() < 0.4 else question


def as_question(tokenizer, memory, record, qa, ids, position, asked=None):
    """One question -> Question, or None where the answer lies past the end of the kept passage.
    Gold: the chunk of the answer's span where it has one, else every chunk of the passage."""
    text, answer = record['context'], qa['a']
    whole = memory.chunks(position, position + len(ids))
    start = qa.get('start', qa.get('at'))
    if start is None and answer:
        found = text.lower().find(answer.lower())
        start = found if found >= 0 else None
    gold = whole
    if start is not None:
        first, last = tokenizer.token_span(ids, text, start, len(answer))
        if first >= len(ids):
            return None
        gold = memory.chunks(position + first, position + min(last, len(ids)))
    answer = answer or ' '.join(text.split()[:12])
    told = tokenizer.encode_answer(answer)
    return Question(tokenizer.encode(asked or qa['q']), [Part(told[:ANSWER_TOKENS_MAX], gold, whole - gold)],
                    own_row_only=record['source'].startswith(ALONE), weight=0.3, cut=len(told) > ANSWER_TOKENS_MAX)


def dialogue_questions(tokenizer, rng, memory, text, ids, position):
    """What was the reply to a line, and who said it: for lines that occur once."""
    lines, at, questions = [], 0, []
    for line in text.split('\n'):
        speaker, colon, words = line.partition(': ')
        if colon and words:
            lines.append((speaker, words, at + len(speaker) + 2))
        at += len(line) + 1
    for (speaker, words, start), (replier, reply, reply_start) in zip(lines, lines[1:]):
        if len(words) < 25 or len(words) > 160 or text.count(words) > 1 or rng.random() < 0.5:
            continue
        reply = ' '.join(reply.split()[:10])
        who = rng.random() < 0.3
        said, said_at = (speaker, start - len(speaker) - 2) if who else (reply, reply_start)
        first, last = tokenizer.token_span(ids, text, said_at, len(said))
        if last >= len(ids):
            break
        question = (f'Who said "{words}"?' if who else
                    rng.choice((f'What was the reply to "{words}"?', f'What did {replier} say after "{words}"?', f'{speaker}: {words}')))
        parts = ([Part(tokenizer.encode_answer(said), memory.chunks(position + first, position + last))] if who else
                 split_by_chunk(tokenizer, said, position + first, last - first, memory.chunks))
        questions.append(Question(tokenizer.encode(question), parts, own_row_only=True, weight=0.5))
    return questions
