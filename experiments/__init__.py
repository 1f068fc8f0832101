"""Experiments on Herald: workloads, arrivals and settings as data; one row per run; figures from rows.

Uses Herald the way a user does: `herald.attach`, `herald.launch` and the `herald daemon` command. Nothing in
Herald imports this package except the command line, and only when one of its commands is called.
"""
