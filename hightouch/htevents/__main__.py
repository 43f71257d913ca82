"""``python -m hightouch.htevents``"""

import sys

from hightouch.htevents.cli import main

if __name__ == '__main__':
    sys.exit(main())
