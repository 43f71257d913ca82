"""Tests that what is released agrees with itself. They need a checkout or an sdist."""

import os
import re
import shutil
import subprocess
import tempfile
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

    @unittest.skipUnless(
        shutil.which('git') and os.path.exists(os.path.join(ROOT, '.github')),
        'no git, or an sdist',
    )
    def test_a_release_is_tested_and_on_master(self) -> None:
        """What is published was tested before, and its tag is on master."""
        jobs = re.split(
            r'^  (\w+):\n', read('.github/workflows/ci-release.yml'), flags=re.M
        )
        by_name = dict(zip(jobs[1::2], jobs[2::2]))
        self.assertIn('needs: build\n', by_name['publish'])
        self.assertIn('needs: test\n', by_name['build'])
        self.assertIn('uses: ./.github/workflows/ci.yml ', by_name['test'])
        ci = read('.github/workflows/ci.yml')
        self.assertIn('workflow_call:', ci)
        # One run has both workflows, and an artifact of each name once.
        artifacts = re.findall(
            r'uses: actions/upload-artifact.*\n +with:\n +name: (.*)',
            ci + ''.join(jobs),
        )
        self.assertEqual(len(artifacts), 2)
        self.assertEqual(len(set(artifacts)), 2)
        step = by_name['build'].partition('- name: Check that the tag is on master\n')[
            2
        ]
        script = step.partition('run: |\n')[2].partition('      - name')[0]

        def run(command: str) -> int:
            # Of a hook of git, say, which would have us commit into its repository.
            env = {name: os.environ[name] for name in os.environ if name[:4] != 'GIT_'}
            env['GIT_CONFIG_GLOBAL'] = env['GIT_CONFIG_SYSTEM'] = os.devnull
            return subprocess.call(
                ['sh', '-ec', command], cwd=folder, stdout=subprocess.DEVNULL, env=env
            )

        commit = (
            'git -c user.name=a -c user.email=a@b -c commit.gpgsign=false'
            ' commit -q --allow-empty -m "%s"'
        )
        with tempfile.TemporaryDirectory() as folder:
            made = run('git init -q . && %s' % commit % 'on master')
            made += run('git update-ref refs/remotes/origin/master HEAD')
            self.assertEqual(made, 0)
            self.assertEqual(run(script), 0)
            self.assertEqual(run(commit % 'elsewhere'), 0)
            self.assertEqual(run(script), 1)


if __name__ == '__main__':
    unittest.main()
