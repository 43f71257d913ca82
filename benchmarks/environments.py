"""A virtual environment for each package that is measured.

The checkout is installed as an application would have it: as a wheel, built from a copy,
so that nothing is left in the checkout and no hook of an editable install runs at import.
"""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Dict, List, Optional, Tuple

import peers

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# What a build of the checkout reads.
_SOURCES = ('hightouch', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in')

# Seconds for one command of pip.
_PIP_LIMIT = 600

# Environments that are made at once: most of it is waiting for the index.
_AT_ONCE = 4

# Names what an environment was made for, so that it is only used again for that.
_MARKER = 'benchmark-requirement'

_VERSION = (
    'import sys\n'
    'from importlib.metadata import version\n'
    'print(version(sys.argv[1]))'
)


class CannotInstall(Exception):
    """The reason, in one line."""


def clean_environ() -> Dict[str, str]:
    """The environment for a child: no proxy, no settings of Python or of the SDK.

    Nor does it write bytecode: the packages have theirs from pip, and the checkout is not
    ours to write to.
    """
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(('PYTHON', 'HTEVENTS_', 'VIRTUAL_ENV'))
        and not name.lower().endswith('_proxy')
    }
    return dict(environ, PYTHONNOUSERSITE='1', PYTHONDONTWRITEBYTECODE='1')


def prepare(
    folder: str, scratch: str, wanted: List[peers.Peer]
) -> Tuple[Dict[str, str], Dict[str, str], Dict[str, str]]:
    """Make or reuse the environments.

    :param folder: where they are; what is found there is used again
    :param scratch: for the wheel of the checkout
    :returns: interpreters, versions, and the reasons why some are missing; by peer
    """
    wheel = _build_wheel(scratch) if any(each.ours for each in wanted) else ''
    pythons: Dict[str, str] = {}
    versions: Dict[str, str] = {}
    missing: Dict[str, str] = {}
    own = [each for each in wanted if not each.limit]

    def install(peer: peers.Peer) -> None:
        try:
            python = _install(folder, peer, wheel)
            # Some can be installed on a Python that they do not run on.
            _run([python, '-I', '-c', 'import ' + peer.module])
            versions[peer.key] = _version_of(python, peer)
            pythons[peer.key] = python
        except CannotInstall as error:
            missing[peer.key] = str(error)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(install, own))
    for peer in wanted:
        if peer.limit and peer.requirement in pythons:
            pythons[peer.key] = pythons[peer.requirement]
        elif peer.limit:
            missing[peer.key] = 'it runs in the environment of another that is missing'
    return pythons, versions, missing


def _build_wheel(scratch: str) -> str:
    copy, out = os.path.join(scratch, 'checkout'), os.path.join(scratch, 'wheel')
    os.mkdir(copy)
    for name in _SOURCES:
        path = os.path.join(ROOT, name)
        if os.path.isdir(path):
            shutil.copytree(
                path,
                os.path.join(copy, name),
                ignore=shutil.ignore_patterns('__pycache__', 'test'),
            )
        else:
            shutil.copy(path, copy)
    _pip(sys.executable, 'wheel', '--no-deps', '--wheel-dir', out, copy)
    return os.path.join(out, os.listdir(out)[0])


def _install(folder: str, peer: peers.Peer, wheel: str) -> str:
    place = os.path.join(folder, peer.key)
    python = os.path.join(place, 'bin', 'python')
    package = wheel + peer.requirement if peer.ours else peer.requirement
    made_for = '%s, Python %s\n' % (
        'checkout' + peer.requirement if peer.ours else peer.requirement,
        platform.python_version(),
    )
    marker = os.path.join(place, _MARKER)
    if _content(marker) != made_for:
        shutil.rmtree(place, ignore_errors=True)
        _run([sys.executable, '-m', 'venv', place])
        # requests is for the bare POST that a single event is measured beside.
        _pip(python, 'install', package, 'requests')
        if peer.key == peers.FAST:
            _run([python, '-c', 'import orjson'])
        with open(marker, 'w') as file:
            file.write(made_for)
    elif peer.ours:  # the checkout may have changed since
        _pip(python, 'install', '--force-reinstall', '--no-deps', wheel)
    return python


def _version_of(python: str, peer: peers.Peer) -> str:
    name = peer.requirement.partition('==')[0] if not peer.ours else 'events-sdk-python'
    return _run([python, '-I', '-c', _VERSION, name]).strip()


def _content(path: str) -> Optional[str]:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None


def _pip(python: str, *args: str) -> str:
    # Bytecode is wanted here, or the first import would be measured with compiling.
    return _run(
        [python, '-m', 'pip', '--quiet', '--disable-pip-version-check'] + list(args)
    )


def _run(command: List[str]) -> str:
    # As the user's own: an index may be behind a proxy.
    environ = dict(os.environ, PYTHONNOUSERSITE='1')
    environ.pop('PYTHONPATH', None)
    environ.pop('PYTHONDONTWRITEBYTECODE', None)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            timeout=_PIP_LIMIT,
            env=environ,
        )
    except subprocess.TimeoutExpired:
        raise CannotInstall('it took more than %d s' % _PIP_LIMIT)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith('ERROR')] or lines
        raise CannotInstall(errors[-1] if errors else '%s failed' % command[0])
    return done.stdout
