"""Evaluation JSON -> which of the project's bars the bundle reaches. Exit status 0 when it reaches all of them.

Usage: python3 -m training.bars RESULT.json [MORE.json of the same bundle]"""
import json
import sys
from pathlib import Path

from training.report import joined, summary

EXACT, RECALL_AT_1 = 1, 2                    # columns of report.summary
FACTS = [('dense', size, column, least) for size in ('16M', '64M') for column, least in ((RECALL_AT_1, 0.98), (EXACT, 0.95))]
FACTS += [(family, size, EXACT, 1.0) for family in ('passkey', 'single') for size in ('64M', '256M')]
FACTS += [(family, '64M', EXACT, 0.98) for family in ('multi_key', 'multi_value', 'multi_query')]
FACTS += [(family, '64M', EXACT, 0.9) for family in ('variable_tracking', 'joint')]
NAMES = {EXACT: 'exact', RECALL_AT_1: 'recall@1'}


def bars(report):
    """[(what, measured or None, least or most, reached)]."""
    facts, result = summary(report['dense'] + report['needles']), []
    for family, size, column, least in FACTS:
        found = facts.get((family, size))
        value = found[column] if found else None
        result.append((f'{family} {size} {NAMES[column]}', value, least, value is not None and value >= least))
    for s in report['sets']:
        result.append((f'{s["set"]} recall@8 against BM25', s['recall_at_8'], s['bm25_recall_at_8'], s['recall_at_8'] >= s['bm25_recall_at_8']))
    points = {p['memory_tokens']: p['perplexity'] for p in report['perplexity']}
    for other, name in ((0, 'without memory'), (4096, 'with 4K')):
        value, most = points.get(1 << 20), points.get(other)
        result.append((f'perplexity with 1M at most that {name}', value, most, None not in (value, most) and value <= most))
    return result


def table(report):
    number = lambda v: '-' if v is None else f'{v:.3f}'
    return '\n'.join(f'{"yes" if ok else "NO ":3} {what:48} {number(value):>8} {number(bar):>8}' for what, value, bar, ok in bars(report))


if __name__ == '__main__':
    whole = joined([json.loads(Path(p).read_text()) for p in sys.argv[1:]])
    print(f'{"":3} {whole["bundle"]:48} {"measured":>8} {"bar":>8}\n{table(whole)}')
    sys.exit(not all(ok for *_, ok in bars(whole)))
