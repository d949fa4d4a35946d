# SPDX-License-Identifier: MIT
"""What a setting that leaves something open means: the built-in one. No torch is needed to read results."""

DEFAULTS = {
    "coverage": 0.1,
    "keep": 0,
    "share": "kv_group",
    "dropped": "local",
    "sink": 64,
    "band": 256,
    "window": 128,
    "pool": 7,
    "min_tokens": 1024,
    "min_keys": 0,  # prompts here are long enough
    "long_keys": 0,
    "long_coverage": 0,
    "vote": "recent",  # of this engine alone
}
