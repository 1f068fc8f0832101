"""`python -m herald` is `herald`."""

from herald.cli import main

raise SystemExit(main())
