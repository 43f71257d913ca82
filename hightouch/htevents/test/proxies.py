import os

import mock
import requests

from hightouch.htevents._process.proxies import is_loopback, proxies_for
from hightouch.htevents.test.support import LIMIT, TestCase, make_key


class ProxiesTest(TestCase):
    key = make_key()

    def test_the_proxy_of_the_environment_is_not_for_loopback(self) -> None:
        dead = {'HTTP_PROXY': 'http://127.0.0.1:9', 'ALL_PROXY': 'http://127.0.0.1:9'}
        dead.update((name.lower(), url) for name, url in list(dead.items()))
        with mock.patch.dict(os.environ, dead), requests.Session() as mine:
            for name in ('NO_PROXY', 'no_proxy'):
                os.environ.pop(name, None)
            for url in (
                self.collector.url,
                self.collector.url.replace('127.0.0.1', 'localhost'),
            ):
                for session in (None, mine):
                    client = self.oauth_client(
                        host=url, session=session, oauth_auth_server=url, max_retries=0
                    )
                    client.track('user', 'event')
                    self.assertTrue(client.flush(LIMIT))
                    self.assertEqual(client.stats().delivered, 1)
            # One that was set for us, or for the session, is.
            for settings in (
                {'proxies': 'http://127.0.0.1:9'},
                {'session': mine},
            ):  # type: Any
                mine.proxies = {'http': 'http://127.0.0.1:9'}
                client = self.client(max_retries=0, **settings)
                client.track('user', 'event')
                self.assertTrue(client.flush(LIMIT))
                self.assertEqual(client.stats().failed, 1)

    def test_loopback_is_known_by_its_names(self) -> None:
        for host in (
            *('localhost', 'LOCALHOST:80', 'localhost.', 'app.localhost:8000'),
            *('127.0.0.1', '127.0.0.1:80', '127.255.3.4', 'me:x@127.0.0.1:80'),
            *('[::1]', '[::1]:8080', '[0:0:0:0:0:0:0:1]', '[::ffff:127.0.0.1]'),
        ):
            self.assertTrue(is_loopback('http://%s/path' % host), host)
        for host in (
            *('example.com', '127.0.0.1.example.com', 'localhost.example.com', ''),
            *('10.0.0.1', '128.0.0.1', '[::2]', '[2001:db8::1]', '[', 'notlocalhost'),
        ):
            self.assertFalse(is_loopback('http://%s/path' % host), host)

    def test_no_proxy_may_name_an_address_of_ipv6(self) -> None:
        url = 'http://[2001:db8::1]:8080/v1/batch'
        for named, excepted in (
            ('[2001:db8::1]', True),
            ('2001:db8::1', True),
            ('example.com, [2001:0db8:0::1]', True),
            ('[2001:db8::1]:8080', True),
            ('[2001:db8::1]:9090,[2001:db8::1]:8080', True),
            ('2001:db8::/32', True),
            ('[2001:db8::1]:9090', False),
            ('[2001:db8::2]', False),
            ('10.0.0.0/8,example.com,*', False),  # the last is what requests knows
            ('', False),
        ):
            with mock.patch.dict(os.environ, {'no_proxy': named, 'NO_PROXY': named}):
                found = proxies_for(url, None, None)
                self.assertEqual(found is not None, excepted, named)
                self.assertIsNone(proxies_for('http://[/', None, None))
