"""Tests that README.md is true: its snippets run.

They need a checkout or an sdist, and no network: each snippet runs in a process of its
own, with the collector on loopback in the place of the one that the README starts, and
with every way to another host closed.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
import warnings
from typing import List, Tuple

from hightouch.htevents.collector import Collector
from hightouch.htevents.test.constants import TEST_WRITE_KEY

ROOT = os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
)
README = os.path.join(ROOT, 'README.md')
# Where `python -m hightouch.htevents collect` listens, as the README says.
README_COLLECTOR = 'http://127.0.0.1:8765'
# What an application with one of these does before a snippet, and after it. Where it is not
# installed, the snippets for it do not run.
FRAMEWORKS = {
    'django': (
        'from django.conf import settings\n'
        'settings.configure(DATABASES={"default": {"ENGINE": '
        '"django.db.backends.sqlite3", "NAME": ":memory:"}})\n'
        'import django\n'
        'django.setup()\n',
        '',
    ),
    'sqlalchemy': ('', ''),
    'fastapi': (
        '',
        'async def serve():\n'
        '    async with app.router.lifespan_context(app):\n'
        '        htevents.track("user-1", "Page Served")\n'
        'import asyncio, os\n'
        'asyncio.run(serve())\n'
        'os._exit(0)  # as by a signal\n',
    ),
}
# What pytest does with the tests of a snippet.
FIXTURES = """
from hightouch.htevents import testing
with testing.capture() as events:
    test_orders_are_tracked(events)
with testing.collector() as collector:
    test_an_outage_loses_nothing(collector)
"""
# Seconds that a snippet may take on a busy machine.
SNIPPET_LIMIT = 120


def read() -> str:
    with open(README, encoding='utf-8') as file:
        return file.read()


def snippets() -> List[Tuple[str, str]]:
    """Give the heading above and the text of each Python snippet, in order."""
    found = []
    heading = ''
    pattern = r'^#+ (?P<heading>[^\n]*)$|^```python\n(?P<code>.*?)^```$'
    for match in re.finditer(pattern, read(), re.MULTILINE | re.DOTALL):
        if match.group('code') is None:
            heading = match.group('heading')
        else:
            found.append((heading, match.group('code')))
    return found


def prepared(code: str) -> str:
    """Give a snippet as it runs here; an empty text where it cannot."""
    if 'asyncio.run(' in code and sys.version_info < (3, 7):
        return ''
    if '(htevents_capture)' in code:
        return code + FIXTURES
    for name, (before, after) in FRAMEWORKS.items():
        if 'from %s' % name in code:
            return before + code + after if importlib.util.find_spec(name) else ''
    return code


@unittest.skipUnless(os.path.exists(README), 'not in a checkout')
class ReadmeTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def test_every_snippet_runs_and_delivers(self) -> None:
        """Each Python snippet ends well, prints no error, and its events arrive."""
        self._make_private_key()
        found = snippets()
        self.assertGreater(len(found), 5)
        for heading, code in found:
            code = prepared(code)
            if not code:
                continue
            with self.subTest(heading=heading, code=code), Collector() as collector:
                self._run(code.replace(README_COLLECTOR, collector.url), collector.url)
                # A snippet for tests looks at the events itself.
                if 'Collector(' not in code and 'testing' not in code:
                    self.assertGreater(len(collector.events), 0)

    def test_there_are_two_commands_for_a_fresh_machine(self) -> None:
        """One line shows the main job and one runs the tests, each with its set-up."""
        commands = re.findall(r'^python3 -m venv .*$', read(), re.MULTILINE)
        self.assertEqual(len(commands), 2)
        self.assertIn('-m hightouch.htevents demo', commands[0])
        self.assertIn('-m unittest hightouch.htevents.test.all', commands[1])

    def _run(self, code: str, url: str) -> None:
        path = os.path.join(self.folder, 'snippet.py')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(code)
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.lower().endswith('_proxy')
        }
        environment.update(
            PYTHONPATH=ROOT,
            PYTHONIOENCODING='utf-8',
            # What a package of an old Python warns of on import is not ours to tell.
            PYTHONWARNINGS='ignore',
            HTEVENTS_WRITE_KEY=TEST_WRITE_KEY,
            HTEVENTS_HOST=url,
            # A snippet that aims anywhere but at loopback fails, and sends nothing.
            HTTP_PROXY='http://127.0.0.1:9',
            HTTPS_PROXY='http://127.0.0.1:9',
        )
        process = subprocess.Popen(
            [sys.executable, path],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
        )
        try:
            output, errors = process.communicate(timeout=SNIPPET_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            self.fail('not done after %d s' % SNIPPET_LIMIT)
        self.assertEqual((process.returncode, errors), (0, ''), output)

    def _make_private_key(self) -> None:
        """Write the key that the OAuth snippet reads."""
        with warnings.catch_warnings():
            # It warns on import that it will leave an old Python behind.
            warnings.simplefilter('ignore')
            from cryptography.hazmat.backends import default_backend
            from cryptography.hazmat.primitives import serialization
            from cryptography.hazmat.primitives.asymmetric import rsa

        # cryptography before 3.1 asks for the backend, later ones take it.
        key = rsa.generate_private_key(65537, 2048, default_backend())
        text = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        with open(os.path.join(self.folder, 'private_key.pem'), 'wb') as file:
            file.write(text)


if __name__ == '__main__':
    unittest.main()
