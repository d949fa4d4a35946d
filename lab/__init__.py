# SPDX-License-Identifier: MIT
"""The accuracy lab: what a setting of sparse prefill costs a real model, and what it saves."""
