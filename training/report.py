"""Evaluation JSON -> a table in Markdown, and a heat map of depth by length.

Usage: python3 -m training.report RESULT.json [MORE.json ...] [--plot FILE.png]"""
import argparse
import collections
import json
from pathlib import Path


def summary(results):
    """[{size, family, exact, ...}] -> {(family, size): (questions, exact, recall@1, recall@8)} in order of appearance."""
    groups = collections.defaultdict(list)
    for r in results:
        groups[r['family'], r['size']].append(r)
    return {key: (len(rs), *(sum(r[k] for r in rs) / len(rs) for k in ('exact', 'recall_at_1', 'recall_at_8'))) for key, rs in groups.items()}


def table(reports):
    """Markdown for one or more reports side by side."""
    names = [r['bundle'] for r in reports]
    head = lambda *columns: ['| ' + ' | '.join(columns) + ' |', '|' + ' --- |' * len(columns)]
    lines = head('task', 'memory', 'questions', *[f'{n}: exact / recall@1 / recall@8' for n in names])
    sums = [summary(r['dense'] + r['needles']) for r in reports]
    for family, size in dict.fromkeys(key for s in sums for key in s):
        cells = [' / '.join(f'{100 * v:.1f}' for v in s[family, size][1:]) if (family, size) in s else '-' for s in sums]
        count = next(s[family, size][0] for s in sums if (family, size) in s)
        lines.append(f'| {family} | {size} | {count} | ' + ' | '.join(cells) + ' |')
    if any(r['sets'] for r in reports):
        lines += ['', *head('question set', 'questions', 'BM25 recall@1 / @8', *[f'{n}: recall@1 / @8 / F1' for n in names])]
        for name in dict.fromkeys(s['set'] for r in reports for s in r['sets']):
            rows = [next((s for s in r['sets'] if s['set'] == name), None) for r in reports]
            one = next(s for s in rows if s)
            cells = [f"{s['recall_at_1']:.3f} / {s['recall_at_8']:.3f} / " + (f"{s['f1']:.3f}" if s['f1'] is not None else '-') if s else '-' for s in rows]
            lines.append(f"| {name} | {one['questions']} | {one['bm25_recall_at_1']:.3f} / {one['bm25_recall_at_8']:.3f} | " + ' | '.join(cells) + ' |')
    if any(r['perplexity'] for r in reports):
        lines += ['', *head('memory before the reader (tokens)', *[f'{n}: perplexity' for n in names])]
        for i, point in enumerate(next(r['perplexity'] for r in reports if r['perplexity'])):
            cells = [f"{r['perplexity'][i]['perplexity']:.2f}" if i < len(r['perplexity']) else '-' for r in reports]
            lines.append(f"| {point['memory_tokens']} | " + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def plot(report, path, bins=8):
    """Share of exact answers by depth and memory length, over all families."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    sizes = list(dict.fromkeys(r['size'] for r in report['needles']))
    cells = [[[] for _ in sizes] for _ in range(bins)]
    for r in report['needles']:
        cells[min(bins - 1, int(r['depth'] * bins))][sizes.index(r['size'])].append(r['exact'])
    figure, axes = plt.subplots(figsize=(6, 4))
    image = axes.imshow([[sum(c) / max(1, len(c)) for c in row] for row in cells], vmin=0, vmax=1, cmap='RdYlGn', aspect='auto')
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_yticks(range(bins), [f'{100 * (i + 0.5) / bins:.0f} %' for i in range(bins)])
    axes.set_xlabel('memory (tokens)')
    axes.set_ylabel('depth of the fact')
    axes.set_title(f'{report["bundle"]}: exact answers, all families')
    figure.colorbar(image)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('results', nargs='+')
    parser.add_argument('--plot')
    args = parser.parse_args()
    reports = [json.loads(Path(p).read_text()) for p in args.results]
    print(table(reports), end='')
    if args.plot:
        plot(reports[0], args.plot)
