"""Evaluation JSON -> a table in Markdown, and a heat map of depth by length.

Usage: python3 -m training.report RESULT.json [MORE.json ...] [--plot FILE.svg] [--summary FILE.json]
Results of one bundle that were made in several runs can be joined first: --join takes all files as one."""
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


def plot(report, path, bins=8, cell=(84, 34)):
    """Share of exact answers by depth and memory length, over all families, as SVG: red is none, green is all."""
    sizes, (w, h), cells = list(dict.fromkeys(r['size'] for r in report['needles'])), cell, collections.defaultdict(list)
    for r in report['needles']:
        cells[min(bins - 1, int(r['depth'] * bins)), sizes.index(r['size'])].append(r['exact'])
    text = lambda x, y, words, anchor='middle': f'<text x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'
    parts = [text(70 + w * len(sizes) / 2, 18, f'{report["bundle"]}: exact answers (%) by depth of the fact and tokens of memory')]
    for row in range(bins):
        parts.append(text(62, 48 + h * row, f'{100 * (row + 0.5) / bins:.0f} %', 'end'))
        for column in range(len(sizes)):
            found = cells[row, column]
            share = sum(found) / max(1, len(found))
            x, y = 70 + w * column, 28 + h * row
            parts += [f'<rect x="{x}" y="{y}" width="{w - 2}" height="{h - 2}" fill="hsl({120 * share:.0f},65%,62%)"/>',
                      text(x + w / 2, y + h / 2 + 4, f'{100 * share:.0f}')]
    parts += [text(70 + w * (i + 0.5), 46 + h * bins, size) for i, size in enumerate(sizes)]
    Path(path).write_text(f'<svg xmlns="http://www.w3.org/2000/svg" width="{90 + w * len(sizes)}" height="{60 + h * bins}" '
                          f'font-family="sans-serif" font-size="12">' + ''.join(parts) + '</svg>\n')


def joined(reports):
    """Reports of one bundle as one."""
    return {'bundle': reports[0]['bundle'], **{k: [x for r in reports for x in r[k]] for k in ('needles', 'dense', 'sets', 'perplexity')}}


def short(report):
    """What is worth keeping in a repository: shares instead of single questions."""
    rows = [{'family': f, 'memory': size, 'questions': n, 'exact': e, 'recall_at_1': one, 'recall_at_8': eight}
            for (f, size), (n, e, one, eight) in summary(report['dense'] + report['needles']).items()]
    sets = [{k: v for k, v in s.items() if k != 'examples'} for s in report['sets']]
    return {'bundle': report['bundle'], 'facts': rows, 'sets': sets, 'perplexity': report['perplexity']}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('results', nargs='+')
    parser.add_argument('--plot')
    parser.add_argument('--summary')
    parser.add_argument('--join', action='store_true')
    args = parser.parse_args()
    reports = [json.loads(Path(p).read_text()) for p in args.results]
    reports = [joined(reports)] if args.join else reports
    print(table(reports), end='')
    if args.summary:
        Path(args.summary).write_text(json.dumps(short(reports[0]), indent=1) + '\n')
    if args.plot:
        plot(reports[0], args.plot)
