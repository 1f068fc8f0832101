"""`herald build` and `herald reset`: what one does before the first job and after a broken last one."""

import argparse

from herald import build
from herald.config import choose_domain
from herald.table import Table


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Both commands."""
    building = subparsers.add_parser("build", help="build the native libraries ahead of time")
    building.set_defaults(run=_build)
    resetting = subparsers.add_parser("reset", help="remove a domain's shared table")
    resetting.add_argument("--domain", help="default: HERALD_DOMAIN, else 'default'")
    resetting.add_argument("--force", action="store_true", help="even while jobs or a daemon live in it")
    resetting.set_defaults(run=_reset)


def _build(_arguments: argparse.Namespace) -> int:
    for path in build.build_all():
        print(path)
    return 0


def _reset(arguments: argparse.Namespace) -> int:
    domain = choose_domain(arguments.domain)
    removed = Table.unlink(domain, force=arguments.force)
    print(f"domain {domain}: {'removed' if removed else 'there was no table'}")
    return 0
