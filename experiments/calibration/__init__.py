"""`herald calibrate`: the harm that ops do to a request beside them, measured, and the rule that predicts it."""
