"""The tests: ``python -m unittest hightouch.htevents.test.all`` runs all of them."""

import importlib
import pkgutil
import unittest


def all() -> unittest.TestSuite:
    """Collect the tests of every module of this package.

    The modules are found, not listed, so that none can be forgotten. One that cannot
    be imported is a failing test of its own, and the others run all the same.
    """
    loader = unittest.defaultTestLoader
    suite = unittest.TestSuite()
    names = [name for _, name, _ in pkgutil.walk_packages(__path__, __name__ + '.')]
    for name in sorted(names):
        try:
            module = importlib.import_module(name)
        # SkipTest too: a module that skips itself as a whole is one nobody runs.
        except Exception as error:
            suite.addTest(_failure(name, error))
        else:
            suite.addTest(loader.loadTestsFromModule(module))
    return suite


def _failure(name: str, error: Exception) -> unittest.TestCase:
    def fail() -> None:
        raise ImportError('cannot import the test module %s' % name) from error

    return unittest.FunctionTestCase(fail, description=name)
