"""BM25 over chunks of 48 words (Robertson and Zaragoza 2009; k1 1.2, b 0.75): the yardstick for passage retrieval."""
import collections
import math
import re

import numpy as np

TERM = re.compile(r'\w+')


class Bm25:
    """An inverted index over texts given once. Terms are lower-case words, without stemming or stop words."""

    def __init__(self, texts, k1=1.2, b=0.75):
        postings, lengths = collections.defaultdict(list), []
        for number, text in enumerate(texts):
            terms = collections.Counter(TERM.findall(text.lower()))
            lengths.append(sum(terms.values()))
            for term, count in terms.items():
                postings[term].append((number, count))
        lengths = np.array(lengths, np.float64)
        norm = k1 * (1 - b + b * lengths / max(lengths.mean(), 1e-9))
        self.size, self.postings = len(lengths), {}
        for term, found in postings.items():
            at, count = np.array(found).T
            idf = math.log(1 + (self.size - len(at) + 0.5) / (len(at) + 0.5))
            self.postings[term] = at, idf * count * (k1 + 1) / (count + norm[at])

    def top(self, question, k):
        """Indices of the k best texts, best first."""
        score = np.zeros(self.size)
        for term in TERM.findall(question.lower()):
            if term in self.postings:
                at, gain = self.postings[term]
                score[at] += gain
        best = np.argpartition(-score, min(k, self.size - 1))[:k]
        return best[np.argsort(-score[best], kind='stable')]


def word_chunks(text, words=48):
    parts = text.split()
    return [' '.join(parts[i:i + words]) for i in range(0, len(parts), words)] or ['']
