"""Holds as many MiB as the argument says for a moment: something to measure."""

import json
import sys
import time


def main() -> None:
    """Allocate, touch, wait for the sampler, print."""
    mebibytes = int(sys.argv[1])
    held = bytearray(mebibytes * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(0.2)
    sys.stdout.write(json.dumps({"allocated_mib": mebibytes}))


if __name__ == "__main__":
    main()
