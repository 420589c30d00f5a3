#!/usr/bin/env python3
"""The configuration table of docs/operations.md is what `mneme-server --help` says.

usage: config_table.py PROGRAM_DIR [--write]

Compares the table between its two marks with one made from the help text; --write puts that one there.
"""

import os
import re
import subprocess
import sys

DOCUMENT = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), 'docs/operations.md')
BLOCK = re.compile(r'(<!-- config table:[^\n]*-->\n).*?(<!-- end of config table -->)', re.DOTALL)
SECTION = re.compile(r'^([a-z]+):$')
KEY = re.compile(r'^  ([a-z0-9_]+) = (.*)$')
HELP = re.compile(r'^      (.*) \((.*)\)$')


def table(help_text):
    rows = ['| key | default | what | allowed |', '|---|---|---|---|']
    section = key = default = ''
    for line in help_text.split('\n'):
        if match := SECTION.match(line):
            section = match.group(1)
        elif match := KEY.match(line):
            key, default = match.groups()
        elif (match := HELP.match(line)) and section:
            what, allowed = match.groups()
            default = default if default != '""' else 'empty'
            rows.append(f'| `{section}.{key}` | {default} | {what} | {allowed} |')
    return '\n'.join(rows) + '\n'


def main():
    done = subprocess.run([os.path.join(sys.argv[1], 'mneme-server'), '--help'], check=True, capture_output=True, text=True)
    with open(DOCUMENT, encoding='utf-8') as file:
        text = file.read()
    wanted = BLOCK.sub(lambda match: match.group(1) + table(done.stdout) + match.group(2), text)
    keys = done.stdout.count(' = ')
    if wanted.count('\n| `') < keys:
        print(f'FAILED: the help text has {keys} keys, the table made from it fewer: its form has changed')
        return 1
    if '--write' in sys.argv[2:]:
        with open(DOCUMENT, 'w', encoding='utf-8') as file:
            file.write(wanted)
    elif wanted != text:
        print('FAILED: docs/operations.md has another table; tests/system/config_table.py PROGRAM_DIR --write mends it')
        return 1
    print(f'{keys} keys')
    return 0


if __name__ == '__main__':
    sys.exit(main())
