#!/usr/bin/env python3
"""The bridge as `slowjobs bridge --config FILE` runs it, but for the cap of its lanes, which is lifted."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from slowjobs import service, settings
from slowjobs.bridge import bridge

#: requests; more than any measurement has.
LIFTED = 10_000_000


def main() -> None:
    """Run it until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["bridge"])
    parser.add_argument("--config", type=Path, required=True)
    path = parser.parse_args().config
    config = settings.load(path, settings.BridgeSettings)
    # No file can say this: a commit has no room for so many positions.
    lanes = {name: lane.model_copy(update={"max_outstanding": LIFTED}) for name, lane in config.lanes.items()}
    lifted = bridge.Bridge(config.model_copy(update={"lanes": lanes}), settings.credentials())
    asyncio.run(
        service.run(
            lifted, name="bridge", host=config.host, address=config.state_address, config=settings.fingerprint(path)
        )
    )


if __name__ == "__main__":
    main()
