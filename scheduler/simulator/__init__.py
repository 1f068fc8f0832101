"""A GPU with its jobs as discrete events, under the policies, the observer and the daemon's tick that are shipped.

What is simulated: the device (who runs how fast), the jobs' own agents (when a gate closes, what a row says) and time.
What is not: the table, the snapshot, the memory, the policy, publishing. Nothing here imports torch or experiments.
"""
