"""Tests that what is released agrees with itself. They need a checkout or an sdist."""

import os
import re
import unittest

from hightouch.htevents.version import VERSION

ROOT = os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
)


def read(name: str) -> str:
    with open(os.path.join(ROOT, name), encoding='utf-8') as file:
        return file.read()


@unittest.skipUnless(
    os.path.exists(os.path.join(ROOT, 'pyproject.toml')), 'not in a checkout'
)
class PackagingTest(unittest.TestCase):
    def test_version_is_the_same_everywhere(self) -> None:
        """pyproject.toml, version.py and the newest changelog entry agree."""
        # By hand: the standard library reads TOML only since 3.11.
        project = read('pyproject.toml').partition('\n[project]\n')[2]
        project = project.partition('\n[')[0]
        self.assertEqual(
            re.findall(r'^version = "([^"]*)"$', project, re.MULTILINE), [VERSION]
        )
        entries = re.findall(r'^## (\S+)', read('CHANGELOG.md'), re.MULTILINE)
        self.assertEqual(entries[0], VERSION)

    def test_hightouch_is_a_namespace(self) -> None:
        """Other distributions can put packages into hightouch/ beside this one."""
        self.assertFalse(os.path.exists(os.path.join(ROOT, 'hightouch', '__init__.py')))

    def test_no_command_is_installed(self) -> None:
        """The command htevents is the one of Hightouch's code generator."""
        self.assertNotIn('[project.scripts]', read('pyproject.toml'))

    def test_type_marker_is_there(self) -> None:
        """The package says that it is typed (PEP 561)."""
        marker = os.path.join(ROOT, 'hightouch', 'htevents', 'py.typed')
        self.assertTrue(os.path.exists(marker))


if __name__ == '__main__':
    unittest.main()
