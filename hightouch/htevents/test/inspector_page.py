"""The page of the inspector, in a real browser: needs selenium, Chromium and its driver."""

import json
import shutil
import time
import unittest
from typing import Any, List

from hightouch.htevents.cli.inspector import Inspector
from hightouch.htevents.test.collector import event
from hightouch.htevents.test.support import LIMIT, TestCase

try:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.keys import Keys
except ImportError:
    webdriver = None  # type: ignore[assignment]

CHROMIUM = shutil.which('chromium')
DRIVER = shutil.which('chromedriver')

# It must not ask for anything outside of this machine, and its user may be root here.
OPTIONS = (
    *('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic'),
    *('--no-first-run', '--disable-background-networking', '--disable-sync'),
    *('--disable-component-update', '--disable-dev-shm-usage'),
)


@unittest.skipUnless(webdriver and CHROMIUM and DRIVER, 'no browser')
class PageTest(TestCase):
    browser: Any

    @classmethod
    def setUpClass(cls) -> None:
        options = webdriver.ChromeOptions()
        for each in OPTIONS:
            options.add_argument(each)
        options.binary_location = CHROMIUM
        options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
        cls.browser = webdriver.Chrome(options=options, service=Service(DRIVER))
        cls.addClassCleanup(cls.browser.quit)

    def setUp(self) -> None:
        super().setUp()
        self.inspector = Inspector().start()
        self.addCleanup(self.inspector.stop)
        self.look(1280, 760)
        self.browser.get(self.inspector.url)
        self.wait_for('return seconds.length > 0')
        self.tracker = self.client(host=self.inspector.url)

    def tearDown(self) -> None:
        """Whatever a test did: no error, and nothing fetched from elsewhere."""
        self.assertEqual(self.browser.get_log('browser'), [])
        fetched = self.evaluate(
            "return performance.getEntriesByType('resource').map(each => each.name)"
        )
        for each in fetched:
            self.assertTrue(each.startswith((self.inspector.url, 'data:')), each)

    def look(self, width: int, height: int, scheme: str = 'light') -> None:
        size = {'width': width, 'height': height, 'deviceScaleFactor': 1}
        command = 'Emulation.setDeviceMetricsOverride'
        self.browser.execute_cdp_cmd(command, dict(size, mobile=False))
        features = [{'name': 'prefers-color-scheme', 'value': scheme}]
        self.browser.execute_cdp_cmd(
            'Emulation.setEmulatedMedia', {'features': features}
        )

    def evaluate(self, script: str, *args: Any) -> Any:
        return self.browser.execute_script(script, *args)

    def wait_for(self, script: str, *args: Any) -> Any:
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            found = self.evaluate(script, *args)
            if found:
                return found
            time.sleep(0.01)
        self.fail('not in time: %s; the page: %s' % (script, self.text('body')))

    def text(self, selector: str) -> str:
        text: str = self.evaluate(
            'return document.querySelector(arguments[0]).innerText', selector
        )
        return text

    def names(self) -> List[str]:
        found: List[str] = self.evaluate(
            "return Array.from(document.querySelectorAll('.row'))"
            '.sort((one, other) => parseFloat(one.style.top) - parseFloat(other.style.top))'
            ".map(row => row.querySelector('.name').firstChild.textContent)"
        )
        return found

    def wait_for_names(self, *names: str) -> None:
        deadline = time.monotonic() + LIMIT
        while self.names() != list(names):
            self.assertLess(time.monotonic(), deadline, self.names())
            time.sleep(0.01)

    def press(self, *keys: str) -> None:
        for each in keys:
            self.browser.switch_to.active_element.send_keys(each)

    def click(self, selector: str) -> None:
        self.browser.find_element('css selector', selector).click()

    def type_into(self, selector: str, text: str) -> None:
        field = self.browser.find_element('css selector', selector)
        field.clear()
        field.send_keys(text)

    def send(self, *names: str, **changes: Any) -> None:
        for name in names:
            self.inspector._add(event(event=name, **changes), [], '')

    def test_an_event_is_on_the_page_soon_after_a_flush(self) -> None:
        self.evaluate(
            'window.seen = {};'
            'new MutationObserver(() => {'
            "  for (const row of document.querySelectorAll('.row'))"
            "    seen[row.querySelector('.name').textContent] ||= Date.now();"
            "}).observe(document.getElementById('rows'), {childList: true})"
        )
        waits = []
        for number in range(10):
            name = 'event %d' % number
            self.tracker.track('user', name)
            self.assertTrue(self.tracker.flush(LIMIT))
            flushed = time.time()
            seen = self.wait_for('return seen[arguments[0]]', name)
            waits.append(seen / 1000.0 - flushed)
        # A busy machine may delay some of them, not all.
        self.assertLess(min(waits), 0.2)
        self.assertLess(sorted(waits)[5], 2, waits)

    def test_the_newest_is_first_and_the_empty_page_says_what_to_do(self) -> None:
        self.assertIn("htevents.host = '%s'" % self.inspector.url, self.text('#empty'))
        self.send('one', 'two', 'three')
        self.wait_for_names('three', 'two', 'one')
        self.send('four')
        self.wait_for_names('four', 'three', 'two', 'one')
        self.assertIn('4 received', self.text('#state'))
        self.assertEqual(self.text('#types'), 'track 4')

    def test_events_are_filtered_by_type_user_name_and_text(self) -> None:
        self.send('one', userId='anna')
        self.send('two', userId='bert', properties={'total': 'Ünique'})
        self.inspector._add(
            event(type='page', name='three', userId='anna', event=None), [], ''
        )
        self.inspector._add(event(event='four', userId='carl'), ['it is bad'], '')
        self.wait_for_names('four', 'three', 'two', 'one')
        self.click('#types [data-type=track]')
        self.wait_for_names('four', 'two', 'one')
        self.click('#types [data-type=page]')
        self.click('#types [data-type=track]')
        self.wait_for_names('three')
        self.click('#types [data-type=page]')
        self.click('#types [data-type=bad]')
        self.wait_for_names('four')
        self.click('#types [data-type=bad]')
        self.type_into('#by-user', 'AN')
        self.wait_for_names('three', 'one')
        self.type_into('#by-name', 'one')
        self.wait_for_names('one')
        self.assertIn('1 matches', self.text('#state'))
        self.send('one more', userId='anna')
        self.send('one of others', userId='bert')
        self.wait_for_names('one more', 'one')
        self.type_into('#by-user', '')
        self.type_into('#by-name', '')
        self.type_into('#by-text', 'ünique')
        self.wait_for_names('two')
        self.type_into('#by-text', 'nowhere')
        self.wait_for_names()
        self.assertIn('No event matches', self.text('#empty'))
        self.press(Keys.ESCAPE)
        self.wait_for('return shown.length === 6')

    def test_a_bad_event_is_red_with_its_reason(self) -> None:
        self.inspector._add(event(event='Bad'), ['the first', 'the second'], '401')
        self.wait_for_names('Bad')
        self.assertIn('the first', self.text('.row.bad'))
        self.click('.row')
        self.assertEqual(self.text('#why').split('\n'), ['the first', 'the second'])
        self.assertEqual(self.text('#answer'), 'Passed on: 401')
        self.wait_for("return document.title === '(1 bad) Events'")

    def test_a_click_shows_the_whole_event(self) -> None:
        properties = {'a': [1, 2.5, None, True, {'b': '"\\'}], 'text': 'x' * 1000}
        self.send('one')
        self.send('two', properties=properties)
        self.wait_for_names('two', 'one')
        self.click('.row')
        shown = self.evaluate('return document.getElementById("json").textContent')
        self.assertEqual(
            self.evaluate('return JSON.parse(arguments[0])', shown)['event'], 'two'
        )
        expected = self.evaluate(
            'return JSON.stringify(JSON.parse(events[0].text), null, 2)'
        )
        self.assertEqual(shown, expected)
        self.send('three')  # what is shown stays
        self.wait_for_names('three', 'two', 'one')
        self.assertEqual(self.text('#title h2'), 'two')
        self.click('#close')
        self.assertTrue(self.evaluate("return document.querySelector('aside').hidden"))

    def test_numbers_are_shown_with_all_their_digits(self) -> None:
        numbers = [12345678901234567890, -9007199254740993, 1.0, 1e300]
        self.send('one', properties={'{a}': numbers, 'b': {'c': [], 'd': {}}})
        self.wait_for_names('one')
        self.click('.row')
        shown = self.evaluate('return document.getElementById("json").textContent')
        whole = self.inspector.entries[0].event
        self.assertEqual(shown, json.dumps(whole, indent=2, ensure_ascii=False))

    def test_half_a_pair_is_shown_as_its_escape(self) -> None:
        self.send('one', properties={'a\ud83d': '\udc00ü'})
        self.wait_for_names('one')
        self.click('.row')
        self.assertIn(r'"a\ud83d": "\udc00ü"', self.text('#json'))

    def test_a_long_name_leaves_room_for_the_event(self) -> None:
        self.send('n' * 20000, userId='u' * 20000)
        self.wait_for('return shown.length === 1')
        for width in (1280, 360):
            self.look(width, 700)
            self.evaluate('choose(shown[0])')
            place = self.evaluate('return $("body").getBoundingClientRect().toJSON()')
            self.assertGreater(place['height'], 200)
            self.assertLessEqual(place['bottom'], 700)
            high = self.evaluate('return document.documentElement.scrollHeight')
            self.assertEqual(high, 700)

    def test_the_head_is_above_its_columns(self) -> None:
        self.send(*map(str, range(100)))
        self.wait_for('return shown.length === 100')
        head, row = self.evaluate(
            "return ['#head', '.row'].map(of => Array.from(document.querySelector(of)"
            '.children, each => each.getBoundingClientRect().right))'
        )
        self.assertEqual(head, row)

    def test_a_narrow_screen_tells_how_many_match(self) -> None:
        self.look(360, 700)
        self.send(*map(str, range(1200)))
        self.wait_for('return shown.length === 1000')
        self.type_into('#by-name', '777')
        self.wait_for('return shown.length === 1')
        self.assertIn('1 matches', self.text('#state'))
        wide = self.evaluate('return $("state").scrollWidth - $("state").clientWidth')
        self.assertEqual(wide, 0)

    def test_the_end_key_chooses_the_oldest(self) -> None:
        self.send('one', 'two', 'three')
        self.wait_for_names('three', 'two', 'one')
        self.press(Keys.END)
        self.assertEqual(self.text('#title h2'), 'one')

    def test_the_keyboard_moves_and_filters(self) -> None:
        self.send(*map(str, range(100)))
        self.wait_for('return shown.length === 100')
        self.press('j')
        self.assertEqual(self.text('#title h2'), '99')
        self.press('j', Keys.ARROW_DOWN, 'k')
        self.assertEqual(self.text('#title h2'), '98')
        self.press(Keys.END)
        self.assertEqual(self.text('#title h2'), '0')
        self.wait_for(
            "return document.querySelector('.row.chosen .name').textContent === '0'"
        )
        self.press(Keys.ESCAPE)
        self.assertTrue(self.evaluate("return document.querySelector('aside').hidden"))
        self.press('/')
        self.press('7')
        self.assertEqual(self.evaluate('return document.activeElement.id'), 'by-text')
        self.press(Keys.ESCAPE)
        self.press('p')
        self.wait_for("return $('pause').textContent === 'Resume'")
        self.press('p', 'c')
        self.wait_for('return shown.length === 0')
        self.assertEqual(self.inspector.total, 0)

    def test_pause_keeps_the_list_and_resume_adds_what_came(self) -> None:
        self.send('one')
        self.wait_for_names('one')
        self.click('#pause')
        self.send('two', 'three')
        self.wait_for(
            "return document.getElementById('pause').innerText === 'Resume (2)'"
        )
        self.assertEqual(self.names(), ['one'])
        self.assertIn('3 received', self.text('#state'))
        self.click('#pause')
        self.wait_for_names('three', 'two', 'one')

    def test_a_paused_page_keeps_its_list_over_a_new_connection(self) -> None:
        self.send('one')
        self.wait_for_names('one')
        self.click('#pause')
        self.send('two')
        self.wait_for('return held.length === 1')
        self.inspector.stop()
        self.wait_for("return document.body.classList.contains('away')")
        self.inspector.start()
        self.wait_for('return held.length === 2')
        self.type_into('#by-name', 'o')
        self.wait_for_names('one')
        self.click('#pause')
        self.wait_for_names('two', 'one')
        self.browser.get_log('browser')  # of the connections that failed

    def test_clear_empties_a_paused_page(self) -> None:
        self.send('one')
        self.wait_for_names('one')
        self.click('#pause')
        self.click('#clear')
        self.wait_for_names()
        self.send('two')
        self.wait_for('return held.length === 1')
        self.click('#pause')
        self.wait_for_names('two')

    def test_clear_forgets_the_events_and_their_counts(self) -> None:
        self.send('one')
        self.wait_for_names('one')
        self.click('#clear')
        self.wait_for_names()
        self.assertEqual(self.inspector.find(_ALL), [])
        self.send('two')
        self.wait_for_names('two')
        self.assertEqual(self.text('#types'), 'track 1')

    def test_many_events_take_no_more_room_than_the_last_thousand(self) -> None:
        for number in range(20):
            self.send(*[str(number)] * 1000)
        self.wait_for('return total === 20000')
        self.assertEqual(
            self.evaluate('return [events.length, shown.length]'), [1000, 1000]
        )
        self.assertLess(
            self.evaluate("return document.querySelectorAll('.row').length"), 60
        )
        self.click('#pause')
        for number in range(5):
            self.send(*[str(number)] * 1000)
        self.wait_for('return total === 25000')
        self.assertEqual(self.evaluate('return held.length'), 1000)

    def test_who_reads_further_down_keeps_the_place(self) -> None:
        self.send(*map(str, range(200)))
        self.wait_for('return shown.length === 200')
        self.evaluate("document.getElementById('list').scrollTop = 3600")
        place = (
            "return Array.from(document.querySelectorAll('.row'))"
            ".find(row => row.textContent.includes(':') && "
            "row.querySelector('.name').textContent === '99')?.getBoundingClientRect().top"
        )
        before = self.wait_for(place)
        self.send(*['new'] * 7)
        self.wait_for('return shown.length === 207')
        self.wait_for('return !drawing')
        self.assertEqual(self.evaluate(place), before)

    def test_texts_of_events_are_shown_as_text(self) -> None:
        evil = '<img src=x onerror="document.title=1"><script>alert(1)</script>'
        self.inspector._add(
            event(event=evil, userId=evil, type=evil, properties={evil: evil}),
            [evil],
            evil,
        )
        self.wait_for_names(evil)
        self.click('.row')
        self.assertIn(evil, self.text('#title h2'))
        self.assertEqual(self.evaluate('return document.images.length'), 0)

    def test_odd_events_are_shown(self) -> None:
        for odd in (
            None,
            7,
            'text',
            [],
            {},
            {'type': [], 'event': {'a': 1}, 'userId': 7},
        ):
            self.inspector._add(odd, ['odd'], '')
        self.wait_for('return shown.length === 6')
        for _ in range(6):
            self.press('j')
        self.assertEqual(
            self.evaluate('return JSON.parse($("json").textContent)'), None
        )

    def test_it_says_when_the_collector_is_gone_and_goes_on_when_it_is_back(
        self
    ) -> None:
        self.send('one')
        self.wait_for_names('one')
        self.inspector.stop()
        self.wait_for("return document.body.classList.contains('away')")
        self.inspector.start()
        self.wait_for("return !document.body.classList.contains('away')")
        self.send('two')
        self.wait_for_names('two', 'one')
        self.browser.get_log('browser')  # of the connections that failed

    def test_it_fits_a_narrow_screen(self) -> None:
        self.look(360, 700)
        self.send('A name that is much longer than such a screen is wide' * 3)
        self.wait_for('return shown.length === 1')
        for _ in range(2):
            wide = self.evaluate(
                "return Array.from(document.querySelectorAll('body, header, main, aside'))"
                '.filter(each => each.getBoundingClientRect().right > 360).length'
            )
            self.assertEqual(wide, 0)
            self.press('j')
            self.wait_for("return !document.querySelector('aside').hidden")

    def test_its_texts_have_contrast_in_both_schemes(self) -> None:
        for kind in ('track', 'identify', 'page', 'screen', 'group', 'alias', 'other'):
            self.inspector._add(
                event(type=kind), ['bad'] if kind == 'track' else [], ''
            )
        self.wait_for('return shown.length === 7')
        self.click('.row')
        for scheme in ('light', 'dark'):
            self.look(1280, 760, scheme)
            weak = self.wait_for('return [' + _CONTRASTS + ']')[0]
            self.assertEqual(weak, [])


class _All:
    def lets(self, entry: Any) -> bool:
        return True


_ALL: Any = _All()

# The texts whose contrast to what is behind them is under 4.5, by WCAG 2.
_CONTRASTS = """
Array.from(document.querySelectorAll('.row > *, #state, #rate, #head > *, #json span, button, #why, label'))
  .map(each => {
    const light = colour => {
      const [r, g, b] = colour.match(/[\\d.]+/g).map(each => each / 255)
        .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    let behind = each;
    while (/, 0\\)|transparent/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
    const pair = [light(getComputedStyle(each).color), light(getComputedStyle(behind).backgroundColor)];
    const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    return contrast < 4.5 ? each.className + each.id + each.innerText + ' ' + contrast : '';
  }).filter(Boolean)
"""
