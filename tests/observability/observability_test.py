#!/usr/bin/env python3
"""Evaluates every expression of the shipped dashboard and rules against a real server.

usage: observability_test.py PROGRAM_DIR

Starts mneme-server and Debian's prometheus on free ports of the loopback, with deploy/prometheus as it ships but for the target's
address and the intervals; runs a small workload through the command line; then asks Prometheus for each expression of each panel
and each rule. Each must return at least one number; of an alert, the left side of its comparison must. Also: promtool's checks of
the files, and its unit tests of the alerts.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RULES = os.path.join(ROOT, 'deploy/prometheus/rules.yml')
CONFIG = os.path.join(ROOT, 'deploy/prometheus/prometheus.yml')
DASHBOARDS = os.path.join(ROOT, 'deploy/grafana/dashboards')
DEADLINE_SECONDS = 120


class Failure(Exception):
    pass


def wait_until(condition, what):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise Failure(f'{what}: not within {DEADLINE_SECONDS} s')


def free_port():
    """One below those that the system gives to whoever asks for any, so that nobody gets it meanwhile."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(('127.0.0.1', port))
                return port
            except OSError:
                pass


def run(*command, check=True, text_in=''):
    done = subprocess.run(command, input=text_in, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise Failure(f'{" ".join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}')
    return done


class Process:
    """A program with its output in a file; ended with the block."""

    def __init__(self, log, *command):
        self.log = log
        with open(log, 'wb') as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if kind is not None:
            with open(self.log, encoding='utf-8', errors='replace') as file:
                sys.stderr.write(f'-- end of {os.path.basename(self.log)}:\n' + ''.join(file.readlines()[-20:]))

    def check_alive(self):
        if self.process.poll() is not None:
            raise Failure(f'{os.path.basename(self.log)}: the program ended with status {self.process.returncode}')


class Prometheus:
    def __init__(self, port):
        self.base = f'http://127.0.0.1:{port}'

    def get(self, path, **parameters):
        url = f'{self.base}{path}?{urllib.parse.urlencode(parameters)}'
        try:
            with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as answer:
                return json.load(answer)['data']
        except urllib.error.HTTPError as error:
            raise Failure(json.load(error).get('error', str(error))) from error

    def is_ready(self):
        try:
            with urllib.request.urlopen(f'{self.base}/-/ready', timeout=10) as answer:
                return answer.status == 200
        except OSError:
            return False

    def numbers(self, expression):
        """The values of an instant query that are numbers."""
        data = self.get('/api/v1/query', query=expression)
        samples = [data['result']] if data['resultType'] == 'scalar' else [one['value'] for one in data['result']]
        return [float(value) for _, value in samples if value != 'NaN']

    def scrapes(self):
        return sum(self.numbers('count_over_time(up{job="mneme"}[10m])'))


def left_side(expression):
    """Of an expression with one comparison outside all brackets and strings: what stands left of it."""
    depth = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[(\[{]|[)\]}]|==|!=|>=|<=|>|<', expression):
        token = match.group()
        if token in '([{':
            depth += 1
        elif token in ')]}':
            depth -= 1
        elif depth == 0 and token[0] != '"':
            return expression[:match.start()].strip()
    raise Failure(f'an alert without a comparison: {expression}')


def dashboard_expressions():
    """(where, expression) of each target of each panel, with Grafana's variables filled in as Grafana does."""
    # A window in which the workload is, however slow the machine.
    variables = {'$__rate_interval': '10m', '$instance': '.+'}
    for name in sorted(os.listdir(DASHBOARDS)):
        with open(os.path.join(DASHBOARDS, name), encoding='utf-8') as file:
            dashboard = json.load(file)
        panels = list(dashboard['panels'])
        while panels:
            panel = panels.pop(0)
            panels = panel.get('panels', []) + panels
            for target in panel.get('targets', []):
                expression = target['expr']
                for variable, value in variables.items():
                    expression = expression.replace(variable, value)
                if '$' in expression:
                    raise Failure(f'{name}, {panel["title"]}: unknown variable in {expression}')
                yield f'{name}, {panel["title"]}', expression


def write_config(folder, http_address):
    """deploy/prometheus as it ships, but for the target and the intervals."""
    with open(CONFIG, encoding='utf-8') as file:
        text = file.read()
    text, targets = re.subn(r'127\.0\.0\.1:7421', http_address, text)
    text, intervals = re.subn(r'(scrape_interval|evaluation_interval): *\w+', r'\1: 1s', text)
    if (targets, intervals) != (1, 2):
        raise Failure(f'{CONFIG}: {targets} targets and {intervals} intervals, not 1 and 2')
    with open(os.path.join(folder, 'prometheus.yml'), 'w', encoding='utf-8') as file:
        file.write(text)
    shutil.copy(RULES, folder)


def workload(mneme, folder):
    text = os.path.join(folder, 'book.txt')
    with open(text, 'w', encoding='utf-8') as file:
        for number in range(400):
            file.write(f'Day {number}. The wind came from the west, and nobody aboard saw land or sail.\n')
            if number == 123:
                file.write('The captain of the lighthouse boat is called Eleonora Vance.\n')
    question = 'Who is the captain of the lighthouse boat?'
    run(mneme, 'create', 'demo')
    run(mneme, 'ingest', 'demo', text)
    for _ in range(3):
        run(mneme, 'search', 'demo', question)
    run(mneme, 'ask', 'demo', question)
    run(mneme, 'documents', 'demo')
    if run(mneme, 'search', 'nowhere', question, check=False).returncode != 1:
        raise Failure('a search of an unknown memory did not fail')


def evaluate_all(prometheus):
    problems = []
    count = 0

    def expect_numbers(where, expression):
        nonlocal count
        count += 1
        try:
            if not prometheus.numbers(expression):
                problems.append(f'{where}: no data: {expression}')
        except Failure as failure:
            problems.append(f'{where}: {failure}: {expression}')

    for where, expression in dashboard_expressions():
        expect_numbers(where, expression)
    for group in prometheus.get('/api/v1/rules')['groups']:
        for rule in group['rules']:
            where = f'rule {rule["name"]}'
            if rule['health'] != 'ok':
                problems.append(f'{where}: {rule["health"]}: {rule.get("lastError")}')
            if rule['type'] == 'alerting':
                prometheus.numbers(rule['query'])
                expect_numbers(where, left_side(rule['query']))
                if rule['state'] == 'firing':
                    problems.append(f'{where}: fires on a healthy server')
            else:
                expect_numbers(where, rule['query'])
                expect_numbers(f'{where}, recorded', rule['name'])
    for variable in prometheus.get('/api/v1/label/instance/values', **{'match[]': 'mneme_build_info'}):
        print(f'instance {variable}')
    return count, problems


def main():
    programs = sys.argv[1]
    if not shutil.which('prometheus') or not shutil.which('promtool'):
        print('SKIPPED: no prometheus or promtool in PATH (deploy/install-deps check installs them)')
        return 77
    print(run('promtool', 'check', 'config', CONFIG).stdout.strip())
    run('promtool', 'test', 'rules', os.path.join(ROOT, 'tests/observability/rules_test.yml'))

    with tempfile.TemporaryDirectory() as folder:
        ports = os.path.join(folder, 'ports')
        server = Process(os.path.join(folder, 'mneme-server.log'), os.path.join(programs, 'mneme-server'),
                         '--data-dir', os.path.join(folder, 'data'), '--listen', '127.0.0.1:0', '--http', '127.0.0.1:0',
                         '--set', f'server.port_file={ports}')
        with server:
            wait_until(lambda: server.check_alive() or os.path.exists(ports), 'start of the server')
            with open(ports, encoding='utf-8') as file:
                addresses = dict(line.strip().split('=', 1) for line in file)
            os.environ['MNEME_ADDRESS'] = addresses['grpc']
            with urllib.request.urlopen(f'http://{addresses["http"]}/metrics', timeout=DEADLINE_SECONDS) as answer:
                lint = run('promtool', 'check', 'metrics', text_in=answer.read().decode(), check=False)
            write_config(folder, addresses['http'])
            port = free_port()
            with Process(os.path.join(folder, 'prometheus.log'), 'prometheus',
                         f'--config.file={folder}/prometheus.yml', f'--storage.tsdb.path={folder}/prometheus',
                         f'--web.listen-address=127.0.0.1:{port}') as peer:
                prometheus = Prometheus(port)
                wait_until(lambda: peer.check_alive() or prometheus.is_ready(), 'start of prometheus')
                # Rates need a sample before the workload and two behind it.
                wait_until(lambda: prometheus.scrapes() >= 2, 'first scrapes')
                workload(os.path.join(programs, 'mneme'), folder)
                seen = prometheus.scrapes()
                wait_until(lambda: prometheus.scrapes() >= seen + 3, 'scrapes after the workload')
                count, problems = evaluate_all(prometheus)
    if lint.returncode != 0:
        problems.append(f'promtool check metrics: {lint.stdout}{lint.stderr}')
    for problem in problems:
        print(f'FAILED: {problem}')
    print(f'{count} expressions evaluated, {len(problems)} problems')
    return 1 if problems else 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except Failure as failure:
        print(f'FAILED: {failure}')
        sys.exit(1)
