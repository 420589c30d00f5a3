#!/usr/bin/env python3
"""Checks the shape of the source tree against the folder rules of docs/architecture.md.

usage: check_tree.py [ROOT]

Reads the tracked files below ROOT (default: the repository that holds this script; all files when ROOT has no git) and prints one
line for each violation, "path:line: what is wrong", then exits with 1; with 0 when there is none. Long files are reported, not
failed. Rules: include direction, link direction in CMake, who may see which library, include guards, own header first, no
unnamed to-dos, no paths of a build machine, no names of package registries, total size.
"""

import os
import re
import subprocess
import sys

# Folder -> the folders whose headers it may include and whose targets it may link, besides itself.
FOLDERS = {
    'common': set(),
    'kernels': {'common'},
    'model': {'common', 'kernels'},
    'memory_store': {'common', 'kernels'},
    'engine': {'common', 'kernels', 'model', 'memory_store'},
    'server': {'common', 'kernels', 'model', 'memory_store', 'engine', 'proto'},
    'client': {'common', 'proto'},
    'proto': set(),
}

# What is included -> the paths (prefixes) that may include it.
LIBRARIES = [
    ('RocksDB', re.compile(r'^rocksdb/'), ('memory_store/rocksdb/', 'tests/memory_store/')),
    ('the inside of the RocksDB store', re.compile(r'^memory_store/rocksdb/(?!rocksdb_chunk_store\.h$)'),
     ('memory_store/rocksdb/', 'tests/memory_store/', 'tests/fuzz/')),
    ('CUDA', re.compile(r'^(cuda\w*\.h|cuda/|cub/|thrust/|cutlass/|cute/|cublas\w*\.h|nv\w+\.h|mma\.h|cooperative_groups.*)'),
     ('kernels/cuda/', 'bench/gpu/', 'tests/kernels/cuda_emulation/')),
    ('oneDNN', re.compile(r'^(oneapi/)?dnnl'), ('kernels/', 'bench/', 'tests/kernels/')),
    ("SentencePiece's schema", re.compile(r'(^|/)sentencepiece_model\.pb\.h$'), ('model/', 'tests/model/')),
    ('protobuf', re.compile(r'^google/protobuf/'), ('model/', 'server/', 'client/', 'tests/', 'bench/')),
    ('gRPC', re.compile(r'^(grpc|grpcpp)/|\.pb\.h$'), ('server/', 'client/', 'tests/', 'bench/')),
]

# Target prefix -> folders whose CMakeLists.txt may link it.
LINKED = [
    ('gRPC::', {'proto', 'server', 'client', 'tests', 'bench'}),
    ('protobuf::', {'proto', 'model', 'server', 'client', 'tests', 'bench'}),
    ('RocksDB::', {'memory_store', 'tests'}),
    ('mneme_dnnl', {'kernels', 'bench', 'tests'}),
    ('CUDA::', {'kernels'}),
]

CODE = ('.h', '.cc', '.cu', '.cuh', '.inc')
TEXT = CODE + ('.py', '.proto', '.cmake', '.txt', '.md', '.sh', '.yml', '.yaml', '.json', '.service', '')
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
UNNAMED = re.compile(r'\b(TO' r'DO|FIX' r'ME)\b(?!\([^)]+\))')
MACHINE_PATH = re.compile(r'[/]work[/](main|steering|shared|brief|[.])|[/]home[/][a-z]|[/]farm[/]')
REGISTRY = re.compile(r'(deb|security)[.]debian[.]org|archive[.]ubuntu[.]com|registry[.]npmjs|pypi[.]org|proxy[.]golang|crates[.]io')
LINES_MAX = 700
TOTAL_BYTES_MAX = 45 << 20


def tracked_files(root):
    """Paths relative to root, '/' between the parts."""
    if os.path.exists(os.path.join(root, '.git')):
        out = subprocess.run(['git', '-c', 'safe.directory=*', '-C', root, 'ls-files', '-z'], check=True, capture_output=True)
        paths = out.stdout.decode().split('\0')
    else:
        paths = []
        for folder, folders, names in os.walk(root):
            if folder == root:                             # what git ignores or does not hold
                folders[:] = [name for name in folders if name not in ('build', 'shared') and not name.startswith('.')]
            paths += [os.path.relpath(os.path.join(folder, name), root) for name in names]
    return sorted(path for path in paths if path and os.path.isfile(os.path.join(root, path)))


def starts_with(path, prefixes):
    return any(path.startswith(prefix) for prefix in prefixes)


def guard_of(path):
    return 'MNEME_' + re.sub(r'[^A-Z0-9]', '_', path.upper()) + '_'


class Tree:
    def __init__(self, root):
        self.root = root
        self.files = tracked_files(root)
        self.headers = {path for path in self.files if path.endswith(('.h', '.cuh', '.inc'))}
        self.violations = []
        self.notes = []

    def fail(self, path, line, what):
        self.violations.append(f'{path}:{line}: {what}')

    def check(self):
        total_bytes = 0
        for path in self.files:
            full = os.path.join(self.root, path)
            total_bytes += os.path.getsize(full)
            extension = os.path.splitext(path)[1]
            if extension not in TEXT:
                continue
            with open(full, 'rb') as file:
                data = file.read()
            if b'\0' in data:
                continue
            lines = data.decode('utf-8', 'replace').split('\n')
            self.check_words(path, lines)
            if extension in CODE:
                self.check_length(path, lines)
                self.check_includes(path, lines)
            elif extension == '.py':
                self.check_length(path, lines)
            if path in self.headers and extension != '.inc':
                self.check_guard(path, lines)
            if os.path.basename(path) == 'CMakeLists.txt':
                self.check_links(path, lines)
        if total_bytes > TOTAL_BYTES_MAX:
            self.fail('.', 0, f'tracked files add up to {total_bytes} bytes; {TOTAL_BYTES_MAX} is the limit')

    def check_length(self, path, lines):
        if len(lines) > LINES_MAX:
            self.notes.append(f'{path}: {len(lines)} lines: is a second noun hiding in it?')

    def check_words(self, path, lines):
        prose = path.endswith('.md')
        for number, line in enumerate(lines, 1):
            if not prose and UNNAMED.search(line):
                self.fail(path, number, 'a to-do without the name of the missing fact in parentheses')
            if MACHINE_PATH.search(line):
                self.fail(path, number, f'a path of a build machine: {MACHINE_PATH.search(line).group()}')
            if REGISTRY.search(line):
                self.fail(path, number, f'a package registry by name: {REGISTRY.search(line).group()}')

    def check_includes(self, path, lines):
        folder = path.split('/')[0]
        targets = []
        for number, line in enumerate(lines, 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            quoted, target = match.group(1) == '"', match.group(2)
            targets.append(target)
            first = target.split('/')[0]
            ours = first in FOLDERS and target in self.headers
            if quoted and first in FOLDERS and not ours and not target.endswith('.pb.h'):
                self.fail(path, number, f'no file {target} in the tree')
            if quoted and '/' not in target and os.path.join(os.path.dirname(path), target) in self.headers:
                self.fail(path, number, f'{target} is included by its path from the root')
            if folder in FOLDERS and ours and first != folder and first not in FOLDERS[folder]:
                self.fail(path, number, f'{folder}/ may not include {first}/ ({target})')
            if folder in FOLDERS and target.startswith(('tests/', 'bench/')):
                self.fail(path, number, f'{folder}/ may not include {target}')
            for name, pattern, allowed in LIBRARIES:
                if pattern.search(target):
                    if not starts_with(path, allowed):
                        self.fail(path, number, f'{name} ({target}) may be included only under {", ".join(allowed)}')
                    break
        own = os.path.splitext(path)[0] + '.h'
        if path.endswith(('.cc', '.cu')) and own in self.headers and own in targets and targets[0] != own:
            self.fail(path, 1, f'its own header {own} comes first')

    def check_guard(self, path, lines):
        guard = guard_of(path)
        directives = [line.strip() for line in lines if line.startswith('#')]
        if directives[:2] != [f'#ifndef {guard}', f'#define {guard}']:
            self.fail(path, 1, f'the include guard is {guard}')

    def check_links(self, path, lines):
        folder = path.split('/')[0] if '/' in path else ''
        if not folder:
            return
        text = '\n'.join(line.split('#')[0] for line in lines)
        for call in re.finditer(r'\b(mneme_folder|target_link_libraries|mneme_tests)\s*\(([^)]*)\)', text):
            number = text.count('\n', 0, call.start()) + 1
            for word in call.group(2).split()[1:]:
                for prefix, allowed in LINKED:
                    if word.startswith(prefix) and folder not in allowed:
                        self.fail(path, number, f'{folder}/ may not link {word}')
                other = word[len('mneme_'):] if word.startswith('mneme_') else ''
                if folder in FOLDERS and other in FOLDERS and other != folder and other not in FOLDERS[folder]:
                    self.fail(path, number, f'{folder}/ may not link {word}')


def main():
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    tree = Tree(sys.argv[1] if len(sys.argv) > 1 else here)
    tree.check()
    for note in tree.notes:
        print(f'note: {note}')
    for violation in tree.violations:
        print(violation)
    print(f'{len(tree.files)} files, {len(tree.violations)} violations')
    return 1 if tree.violations else 0


if __name__ == '__main__':
    sys.exit(main())
