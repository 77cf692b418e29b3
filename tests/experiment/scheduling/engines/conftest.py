"""Ray reads how it is to be spoken to once, when it is imported: here with a token, as on a real network."""

import os

os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2, "RAY_USAGE_STATS_ENABLED": "0"}
