"""Tests that a module imports only what is below it. Every import counts, also a late one."""

import ast
import os
import unittest
from typing import Dict, Iterator, Set

import hightouch.htevents

NAME = 'hightouch.htevents'
ROOT = os.path.dirname(os.path.abspath(hightouch.htevents.__file__))

# The lowest first. Modules of one rung, and of one sub-package, may import each other, but
# not in a circle.
LADDER = (
    'version errors',
    '_process',
    'settings forms findings utils',
    'encoding stamps private_key',
    'arguments',
    '_context',
    '_queue',
    '_spool',
    'request',
    'oauth_manager',
    'consumer',
    'delivery',
    'coroutines',
    'client',
    '__init__',
    'collector cli testing __main__',
    'contrib',
)
RUNGS = {room: number for number, rung in enumerate(LADDER) for room in rung.split()}


def modules() -> Iterator[str]:
    """Yield the modules of the package, such as ``_queue.batch``."""
    for folder, _, names in os.walk(ROOT):
        place = os.path.relpath(folder, ROOT).replace(os.sep, '.')
        if place.split('.')[0] in ('test', '__pycache__'):
            continue
        for name in names:
            if name.endswith('.py'):
                yield (name if place == '.' else place + '.' + name)[: -len('.py')]


def imports_of(module: str, known: Set[str]) -> Iterator[str]:
    with open(os.path.join(ROOT, *module.split('.')) + '.py', encoding='utf-8') as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ['%s.%s' % (node.module, each.name) for each in node.names]
        else:
            continue
        for name in names:
            if name.startswith(NAME):
                inside = name[len(NAME) + 1 :]
                while inside and inside not in known:  # a name in a module
                    inside = inside.rpartition('.')[0]
                yield inside or '__init__'


class LadderTest(unittest.TestCase):
    def setUp(self) -> None:
        known = set(modules())
        self.imports: Dict[str, Set[str]] = {
            module: set(imports_of(module, known)) for module in known
        }

    def test_no_module_imports_one_above_it(self) -> None:
        for module, imported in self.imports.items():
            for each in imported:
                below = RUNGS[each.split('.')[0]] <= RUNGS[module.split('.')[0]]
                self.assertTrue(below, '%s imports %s' % (module, each))

    def test_no_modules_import_each_other_in_a_circle(self) -> None:
        left = dict(self.imports)
        while left:
            free = [each for each in left if not left[each] & set(left)]
            self.assertTrue(free, 'a circle in %s' % sorted(left))
            for each in free:
                del left[each]

    def test_every_rung_exists(self) -> None:
        rooms = {each.split('.')[0] for each in self.imports}
        self.assertEqual(rooms, set(RUNGS))
