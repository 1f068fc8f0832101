"""What tests of requests look at and change in a table."""

import herald
from herald import layout
from herald.table import Table


def is_closed(table: Table) -> bool:
    return table.gate_words()["cpu", layout.CLASS_HEAVY] != 0


def plan(table: Table, job: herald.Job, lead_ns: int, queue_limit: int) -> None:
    view = job.stats()
    table.publish_plan(view.row, view.generation, lead_ns, queue_limit)
