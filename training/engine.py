"""`mneme-server` as training measures it: a server on loopback, spoken to through the command line."""
import json
import os
import subprocess
import time
from pathlib import Path


class Engine:
    """A server of its own with a fresh data directory in `folder`, until the end of the `with`. It takes `port` and the one above."""

    def __init__(self, programs, bundle, folder, precision, port=7440):
        address, http = f'127.0.0.1:{port}', f'127.0.0.1:{port + 1}'
        self.client, self.environment = f'{programs}/mneme', dict(os.environ, MNEME_ADDRESS=address)
        self.log = open(f'{folder}/{precision}.log', 'w')
        self.server = subprocess.Popen([f'{programs}/mneme-server', '--data-dir', f'{folder}/{precision}', '--model', bundle,
                                        '--listen', address, '--http', http], stderr=self.log,
                                       env=dict(os.environ, MNEME_MODEL_PRECISION=precision))

    def __enter__(self):
        for _ in range(300):
            if self.server.poll() is not None:                 # or another server at this address would be measured
                raise RuntimeError(f'mneme-server: {Path(self.log.name).read_text()}')
            if subprocess.run([self.client, 'status'], env=self.environment, capture_output=True).returncode == 0:
                return self
            time.sleep(0.2)
        self.__exit__()
        raise RuntimeError(f'mneme-server is not ready after a minute: {Path(self.log.name).read_text()}')

    def __exit__(self, *_):
        self.server.terminate()
        self.server.wait()
        self.log.close()

    def run(self, *arguments):
        """What the command line answers, with --json."""
        done = subprocess.run([self.client, *arguments, '--json'], env=self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f'mneme {arguments[0]}: {done.stdout}{done.stderr}{Path(self.log.name).read_text()}')
        return json.loads(done.stdout)


def ingest(engine, memory, texts, folder, first=0):
    """Texts into a memory, a new one where `first` is 0, through files in `folder`: each becomes a document that bears its number,
    counted from `first`."""
    if first == 0:
        engine.run('create', memory)
    path = Path(folder) / f'{memory}-{first}'
    path.mkdir()
    for number, text in enumerate(texts, first):
        (path / f'{number:06d}').write_bytes(text.encode())
    engine.run('ingest', memory, str(path))
