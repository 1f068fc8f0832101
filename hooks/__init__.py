"""What runs inside a job: the native op hook, the gate, requests. Never imports herald.scheduler."""
