"""The daemon's side of Herald: snapshot -> policy -> decision -> plans, and the MPS server of a domain.

Never imports torch or `herald.hooks`: the daemon and the jobs meet in the shared table only.
"""
