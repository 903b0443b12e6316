"""Serve an index and models over HTTP: `imgray serve` as a script, for `ray job submit`."""

from imgray.__main__ import main

if __name__ == "__main__":
    main("serve")
