#!/usr/bin/env python3
"""check_tree.py finds each kind of violation in a small made-up tree, and none in a clean one."""

import os
import subprocess
import sys
import tempfile
import unittest

CHECKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'check_tree.py')


def header(path, body=''):
    guard = 'MNEME_' + path.upper().replace('/', '_').replace('.', '_') + '_'
    return f'#ifndef {guard}\n#define {guard}\n{body}\n#endif  // {guard}\n'


CLEAN = {
    'common/log.h': header('common/log.h'),
    'common/log.cc': '#include "common/log.h"\n\n#include <string>\n',
    'kernels/backend.h': header('kernels/backend.h', '#include "common/log.h"'),
    'kernels/cuda/buffer.cu': '#include <cuda_runtime.h>\n#include "kernels/backend.h"\n',
    'kernels/CMakeLists.txt': 'mneme_folder(kernels PUBLIC mneme_common PRIVATE mneme_dnnl)\n',
    'model/tokenizer.cc': '#include "sentencepiece_model.pb.h"\n',
    'memory_store/rocksdb/database.h': header('memory_store/rocksdb/database.h', '#include <rocksdb/db.h>'),
    'memory_store/rocksdb/rocksdb_chunk_store.h': header('memory_store/rocksdb/rocksdb_chunk_store.h'),
    'memory_store/rocksdb/rocksdb_chunk_store.cc':
        '#include "memory_store/rocksdb/rocksdb_chunk_store.h"\n#include "memory_store/rocksdb/database.h"\n',
    'engine/engine.h': header('engine/engine.h', '#include "kernels/backend.h"'),
    'engine/CMakeLists.txt': 'mneme_folder(engine PUBLIC mneme_kernels)\n',
    'server/main.cc': '#include <grpcpp/grpcpp.h>\n#include "engine/engine.h"\n#include "mneme/v1/mneme.grpc.pb.h"\n'
                      '#include "memory_store/rocksdb/rocksdb_chunk_store.h"\n',
    'client/cli/main.cc': '#include "common/log.h"\n// TO' 'DO(exit status of the shell)\n',
    'tests/engine/engine_test.cc': '#include "engine/engine.h"\n#include "mneme/v1/mneme.pb.h"\n',
}

# What is put into the clean tree -> a part of the one line that must be printed.
VIOLATIONS = {
    'lower folder includes a higher one': (
        {'common/metrics.cc': '#include "kernels/backend.h"\n'}, 'common/metrics.cc:1: common/ may not include kernels/'),
    'model sees the store': (
        {'memory_store/ids.h': header('memory_store/ids.h'), 'model/model.cc': '#include <vector>\n#include "memory_store/ids.h"\n'},
        'model/model.cc:2: model/ may not include memory_store/'),
    'client sees the engine': (
        {'client/client.cc': '#include "engine/engine.h"\n'}, 'client/client.cc:1: client/ may not include engine/'),
    'source includes a test': (
        {'engine/a.cc': '#include "tests/engine/fake.h"\n'}, 'engine/a.cc:1: engine/ may not include tests/engine/fake.h'),
    'missing header': ({'engine/b.cc': '#include "engine/gone.h"\n'}, 'engine/b.cc:1: no file engine/gone.h'),
    'include not from the root': ({'engine/c.cc': '#include "engine.h"\n'}, 'engine/c.cc:1: engine.h is included by its path'),
    'grpc in the engine': ({'engine/d.cc': '#include <grpcpp/server.h>\n'}, 'engine/d.cc:1: gRPC'),
    'generated messages in the engine': ({'engine/e.cc': '#include "mneme/v1/mneme.pb.h"\n'}, 'engine/e.cc:1: gRPC'),
    'schema of the tokenizer in the server': (
        {'server/f.cc': '#include "sentencepiece_model.pb.h"\n'}, "server/f.cc:1: SentencePiece's schema"),
    'CUDA outside its folder': ({'kernels/cpu/g.cc': '#include <cuda_runtime.h>\n'}, 'kernels/cpu/g.cc:1: CUDA'),
    'rocksdb outside the store': ({'engine/h.cc': '#include <rocksdb/db.h>\n'}, 'engine/h.cc:1: RocksDB'),
    'rocksdb outside its folder': (
        {'memory_store/text_log.cc': '#include "rocksdb/db.h"\n'},
        'memory_store/text_log.cc:1: RocksDB (rocksdb/db.h) may be included only under memory_store/rocksdb/'),
    'inside of the rocksdb store': (
        {'memory_store/text_log.cc': '#include "memory_store/rocksdb/database.h"\n'},
        'memory_store/text_log.cc:1: the inside of the RocksDB store'),
    'oneDNN in the model': ({'model/i.cc': '#include <oneapi/dnnl/dnnl.hpp>\n'}, 'model/i.cc:1: oneDNN'),
    'link against the direction': (
        {'model/CMakeLists.txt': 'mneme_folder(model\n  PUBLIC mneme_kernels mneme_engine)\n'},
        'model/CMakeLists.txt:1: model/ may not link mneme_engine'),
    'link of grpc in the engine': (
        {'engine/CMakeLists.txt': 'target_link_libraries(mneme_engine PRIVATE gRPC::grpc++)\n'},
        'engine/CMakeLists.txt:1: engine/ may not link gRPC::grpc++'),
    'wrong guard': (
        {'engine/writer.h': header('writer.h')}, 'engine/writer.h:1: the include guard is MNEME_ENGINE_WRITER_H_'),
    'own header not first': (
        {'common/log.cc': '#include <string>\n#include "common/log.h"\n'}, 'common/log.cc:1: its own header common/log.h comes first'),
    'unnamed to-do': ({'engine/j.cc': '// TO' 'DO: later\n'}, 'engine/j.cc:1: a to-do without the name'),
    'path of a build machine': ({'docs/a.md': 'see /ho' 'me/someone/mneme\n'}, 'docs/a.md:1: a path of a build machine'),
    'name of a registry': ({'deploy/install.sh': 'curl deb.deb' 'ian.org\n'}, 'deploy/install.sh:1: a package registry'),
    'too large': ({'models/a.bin': '\0' * (46 << 20)}, 'tracked files add up to'),
}


class CheckTreeTest(unittest.TestCase):
    def run_on(self, files):
        with tempfile.TemporaryDirectory() as root:
            for path, content in files.items():
                full = os.path.join(root, path)
                os.makedirs(os.path.dirname(full), exist_ok=True)
                with open(full, 'w', encoding='utf-8') as file:
                    file.write(content)
            done = subprocess.run([sys.executable, CHECKER, root], capture_output=True, text=True, check=False)
            return done.returncode, done.stdout

    def test_clean_tree_passes(self):
        status, out = self.run_on(CLEAN)
        self.assertEqual((status, out), (0, f'{len(CLEAN)} files, 0 violations\n'))

    def test_builds_of_a_tree_without_git_are_left_out(self):
        status, out = self.run_on({**CLEAN, 'build/release/generated.txt': 'written by cmake in /ho' 'me/somebody\n'})
        self.assertEqual((status, out), (0, f'{len(CLEAN)} files, 0 violations\n'))

    def test_each_violation_is_found_and_nothing_else(self):
        for name, (files, expected) in VIOLATIONS.items():
            with self.subTest(name):
                status, out = self.run_on({**CLEAN, **files})
                self.assertEqual(status, 1, out)
                self.assertIn(expected, out)
                self.assertEqual(len(out.splitlines()), 2, out)

    def test_long_file_is_reported_but_passes(self):
        status, out = self.run_on({**CLEAN, 'engine/long.cc': '\n' * 800})
        self.assertEqual(status, 0, out)
        self.assertIn('note: engine/long.cc: 801 lines', out)


if __name__ == '__main__':
    unittest.main()
