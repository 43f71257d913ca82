"""One per process: its forks, exit, signals, sockets, logs and waits."""
