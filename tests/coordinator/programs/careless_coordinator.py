"""A coordinator with a planted bug: it grants although bytes are in flight. The causality test must notice."""

import sys
from unittest.mock import patch

from hyperlapse.cli.coordinator import command
from hyperlapse.coordinator.agreement import Agreement

with patch.object(Agreement, "in_flight", lambda _self, _now_s: []):
    command(sys.argv[1:])
