"""Check published artifacts: `imgray verify` as a script, for `ray job submit`."""

from imgray.__main__ import main

if __name__ == "__main__":
    main("verify")
